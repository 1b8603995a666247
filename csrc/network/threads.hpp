// A few threads that share the work of one caller at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace pyflow::network {

class Threads {
  public:
    // `count` includes the caller's own thread; 0 is one a processor. Threads start at the first work that can use
    // them, so that a process may fork before.
    explicit Threads(int count);
    ~Threads();
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;

    int count() const { return count_; }

    // Calls work(context, i) once for each i from 0 to `pieces`, on the caller's thread too. A caller who finds the
    // threads busy, or who is one of them, does all of it alone: nobody waits for another's work. What a piece throws
    // is thrown here, and the pieces that had not begun are left out.
    void parallel(int64_t pieces, void (*work)(void* context, int64_t piece), void* context);

  private:
    class Workers;

    int count_;
    std::atomic<bool> busy_{false};
    std::unique_ptr<Workers> workers_;
};

}  // namespace pyflow::network
