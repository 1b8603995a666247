// The denoiser that runs a native network.
//
// A batch is cut in groups of pictures, which threads take one by one, each in a workspace of its own. What follows
// from the times and the label alone is computed before, once for each distinct condition of the batch.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../denoiser.hpp"
#include "arena.hpp"
#include "kernels.hpp"
#include "memory.hpp"
#include "threads.hpp"

namespace pyflow::network {

// How a batch is worked on, and the memory that it takes.
struct Cut {
    int64_t batch, conditions;
    int64_t groups, largest;      // largest: pictures of the largest group
    int64_t workspaces;           // threads that work at once
    std::vector<int64_t> chunks;  // pictures, for each stage
    Layout layout;
    int64_t condition_bytes, group_bytes;  // of the arenas, scratch memory behind the buffers included
};

// Seconds and calls of an operation.
struct Spent {
    double seconds = 0;
    int64_t calls = 0;
};

class NetworkDenoiser final : public Denoiser {
  public:
    struct Row {
        std::string name, kind, algorithm;  // algorithm: of convolutions
        double seconds;
        int64_t calls;
    };

    // The multiplications and additions that are worth a thread: some 40 us. It wakes up in 11 to 22 us (Zen 5, two
    // cores of a virtual machine).
    static constexpr double kLeastWork = 4e6;

    // `owner` keeps the bytes, which are read in place. Threads: 0 is one a processor.
    NetworkDenoiser(const void* bytes, size_t size, std::shared_ptr<const void> owner, Isa isa, int threads,
                    bool profile, double least_work = kLeastWork);

    std::unique_ptr<Bound> bind(const Buffers& buffers) const override;

    // A line an operation, for people.
    std::string describe() const { return network::describe(graph_); }
    // What a run of this batch works in when each picture has a label of its own. It is kept for the next run.
    int64_t workspace_bytes(int64_t batch) const;
    // A row an operation, summed over all runs since the last call. Empty without `profile`.
    std::vector<Row> take_profile() const;

    const Graph& graph() const { return graph_; }
    const Schedule& schedule() const { return schedule_; }
    const Kernels& kernels() const { return kernels_; }
    Threads& threads() const { return threads_; }
    Arenas& arenas() const { return arenas_; }
    bool profiles() const { return profile_; }
    void add_to_profile(const std::vector<Spent>& spent) const;

  private:
    Cut cut(int64_t batch, int64_t conditions) const;
    // The same, kept from the run before where that was cut alike: to think it over takes 0.55 us, as long as all else
    // that binds an MLP (Zen 5).
    std::shared_ptr<const Cut> latest_cut(int64_t batch, int64_t conditions) const;

    std::shared_ptr<const void> owner_;
    Graph graph_;
    Schedule schedule_;
    const Kernels& kernels_;
    bool profile_;
    int64_t least_pictures_;  // that are worth a thread
    mutable Threads threads_;
    mutable Arenas arenas_;  // for as many workspaces as one run has
    mutable std::mutex cut_mutex_;
    mutable std::shared_ptr<const Cut> latest_cut_;
    mutable std::mutex spent_mutex_;
    mutable std::vector<Spent> spent_;  // by operation
};

}  // namespace pyflow::network
