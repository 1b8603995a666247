// The kernels that operations run, one build a level of instruction sets; the executor fills in the arguments.
#pragma once

#include <cstdint>

#include "../isa.hpp"
#include "graph.hpp"

namespace pyflow::network {

// A tensor of some pictures: `data` is the first channel of the first pixel inside the border of the first picture.
struct View {
    void* data;
    int64_t height, width, channels;
    int64_t pixel, row, picture;  // elements from one to the next
    int64_t border;
    Type type;

    template <class Number>
    Number* at(int64_t n, int64_t y, int64_t x) const {
        return static_cast<Number*>(data) + n * picture + y * row + x * pixel;
    }
};

struct Convolve {
    View input, output;
    View other;                // data is null without one; added before the activation
    const int32_t* condition;  // the picture of `other` for each picture, where other is of conditions; else null
    const void* weights;
    const float *bias, *scales;
    int64_t pictures, taps, stride;
    Algorithm algorithm;
    Type weights_type;
    bool silu;
    void* scratch;  // scratch_bytes of it, 64-byte aligned
};

struct Prepare {
    View input, output;
    const float *gamma, *beta;  // null without a norm
    const float* film;          // scales of the first condition, shifts `channels` behind them; null without
    int64_t film_stride;        // from one condition to the next
    const int32_t* condition;   // the condition of each picture
    int64_t pictures, groups, upsample;
    float epsilon, scale;
    uint32_t zero;
    bool silu;
    void* scratch;
};

struct Attend {
    View input, output;
    int64_t pictures, heads;
    void* scratch;
    Type products = Type::f32;  // or bf16: of tokens and of a head's channels in pairs
};

struct Waves {
    const float *s, *t;  // of each condition
    const float *waves, *phases;
    int64_t times, conditions;
    View output;
};

// Copies between the sampler's NCHW floats and a tensor; load writes the border's zeros too.
struct Copy {
    float* pictures;  // (count, channels, height, width)
    View view;
    int64_t count;
};

struct Kernels {
    void (*convolve)(const Convolve&);
    void (*prepare)(const Prepare&);
    void (*attend)(const Attend&);
    void (*waves)(const Waves&);
    void (*load)(const Copy&);
    void (*store)(const Copy&);
};

const Kernels& kernels(Isa isa);

// What a call of a kernel needs at most, for this many pictures at once.
int64_t convolve_scratch(const Graph& graph, const Operation& operation, int64_t pictures);
int64_t prepare_scratch(const Graph& graph, const Operation& operation);
int64_t attend_scratch(const Graph& graph, const Operation& operation);

}  // namespace pyflow::network
