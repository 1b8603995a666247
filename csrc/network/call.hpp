// One operation with its arguments in place: what is left for a run is to say which pictures.
#pragma once

#include "kernels.hpp"
#include "memory.hpp"

namespace pyflow::network {

// The memory that calls read and write.
struct Memory {
    uint8_t *conditions, *group, *scratch;
    const int32_t* rows;  // of each picture of the batch, its row among the conditions
    float *x, *out;
    const float *s, *t;     // of each condition
    const int64_t* labels;  // of each condition
};

// Pictures of the batch: `count` from `first` of the group that starts at `group`.
struct Pictures {
    int64_t group, first, count;
};

class Call {
  public:
    Call(const Graph& graph, const Schedule& schedule, const Layout& layout, uint32_t operation, const Memory& memory);

    uint32_t operation() const { return operation_; }
    // An operation of conditions takes them for its pictures.
    void run(const Kernels& kernels, const Pictures& pictures);

  private:
    // Where a tensor's first picture lies, and the bytes from one to the next: none where a chunk's buffer is meant.
    struct Place {
        uint8_t* first;
        int64_t step;

        void* at(int64_t picture) const { return first + picture * step; }
    };
    struct Label {
        const float* table;
        const int64_t* labels;
        View output;
    };

    uint32_t operation_;
    Kind kind_;
    Place input_{}, other_{}, output_{};
    const int32_t* rows_ = nullptr;
    union {
        Convolve convolve_;
        Prepare prepare_;
        Attend attend_;
        Waves waves_;
        Label label_;
        Copy copy_;
    };
};

}  // namespace pyflow::network
