// Guidance, update and mask of one row: the twin of fused_step in pyflow/core.py, equal to it bit for bit in float32.
#pragma once

#include <cstdint>

#include "isa.hpp"
#include "row.hpp"

namespace pyflow {

// An operand whose coefficient is zero is never read and may be null.
struct Step {
    Row row;
    float guidance;
    int64_t size;
    const float* x;
    const float* cond;
    const float* uncond;  // null: p is cond
    const float* previous;
    const float* noise;
    const float* mask;  // null: everything is generated; else image and noise0 as ka and ks ask
    const float* image;
    const float* noise0;
    float* out;       // may be x
    float* out_twin;  // null, or a second place for the same state: the guided half of the next call's batch
    float* guided;    // null, or where p is kept for the next row; may be previous
};

void fused_step(const Step& step, Isa isa = chosen_isa());

}  // namespace pyflow
