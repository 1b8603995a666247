// Runs a plan: the twin of sample in pyflow/core.py.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

#include "denoiser.hpp"
#include "row.hpp"

namespace pyflow {

using Clock = std::chrono::steady_clock;

// Pointers are to batch*size floats, or null. pyflow/native.py has checked that every operand that a row reads is here.
struct Request {
    std::vector<Row> rows;
    int64_t batch;
    uint32_t seed;
    uint32_t first;  // the number of the first picture: noise belongs to the picture
    double guidance;
    const int64_t* labels;  // null: null_label for every picture
    int64_t null_label;
    const float* mask;
    const float* image;
    const float* noise0;  // null: drawn
    const float* told;    // (batch, extra, ...) beside the state; null where extra is 0
    std::function<void(int64_t row, Clock::time_point ended)> after_row;  // throws to stop
};

// Where a run writes: the (batch, *shape) states after the last row, and for each row its seconds and those of its
// network call. A row's include the denoiser, the noise and the step.
struct Output {
    float* states;
    double *row_seconds, *denoiser_seconds;
};

// Guidance 1 makes one call a row for the batch; any other value makes one call for twice the batch, labelled pictures
// first.
void sample(const Denoiser& denoiser, const Request& request, const Output& output);

}  // namespace pyflow
