// The memory that a run works in, and what runs before have left of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace pyflow::network {

// Every byte 255 when it is made, a NaN in each type of float: a value that nobody wrote shows in the picture.
class Arena {
  public:
    explicit Arena(int64_t bytes);

    uint8_t* get() const { return data_.get(); }
    int64_t bytes() const { return bytes_; }

  private:
    struct Free {
        void operator()(uint8_t* data) const;
    };
    int64_t bytes_;
    std::unique_ptr<uint8_t, Free> data_;
};

// Arenas that wait for the next run. To make one anew is to have its pages cleared and to write each of its bytes once.
class Arenas {
  public:
    // Of more than `most`, the largest are kept.
    explicit Arenas(size_t most) : most_(most) { idle_.reserve(most + 1); }

    Arena take(int64_t bytes);
    void give(Arena arena);
    int64_t bytes() const;  // of those that wait

  private:
    const size_t most_;
    mutable std::mutex mutex_;
    std::vector<Arena> idle_;  // the smallest first
};

}  // namespace pyflow::network
