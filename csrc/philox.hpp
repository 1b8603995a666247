// Noise that belongs to the picture: the twin of pyflow/noise.py. The integers are equal to NumPy's, the normals within
// 2 ulp of NumPy's, and the same bits on every instruction set.
#pragma once

#include <array>
#include <cstdint>

#include "isa.hpp"

namespace pyflow {

struct PhiloxStart {
    std::array<uint32_t, 4> counter;
    std::array<uint32_t, 2> key;
};

// Philox4x32-10: `blocks` times four words; block i adds i to the first word of the counter.
void philox_words(const PhiloxStart& start, int64_t blocks, uint32_t* out, Isa isa = chosen_isa());

// (pictures, size) normals: key (seed, picture), counter (element block, row).
void normal(uint32_t seed, uint32_t first, int64_t pictures, int64_t size, uint32_t row, float* out,
            Isa isa = chosen_isa());

}  // namespace pyflow
