#include "philox.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace pyflow {

namespace {

constexpr int64_t kTileBlocks = 256, kVectorBlocks = 16;  // the first a multiple of the second

template <class Number>
using Tile = Number[4][kTileBlocks];

constexpr double kTwo52 = 4503599627370496.0;
constexpr uint64_t kTwo52Bits = 0x4330000000000000;

template <class To, class From>
inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

inline uint64_t bits_of(double value) { return bit_cast<uint64_t>(value); }
inline uint32_t bits_of(float value) { return bit_cast<uint32_t>(value); }
inline double double_of(uint64_t bits) { return bit_cast<double>(bits); }
inline float float_of(uint32_t bits) { return bit_cast<float>(bits); }

#define PYFLOW_BODY "philox.inl"
#include "each_isa.inl"

}  // namespace

void philox_words(const PhiloxStart& start, int64_t blocks, uint32_t* out, Isa isa) {
    pick(isa, scalar::philox_words, avx2::philox_words, avx512::philox_words)(start, blocks, out);
}

void normal(uint32_t seed, uint32_t first, int64_t pictures, int64_t size, uint32_t row, float* out, Isa isa) {
    const auto fill = pick(isa, scalar::normal, avx2::normal, avx512::normal);
    for (int64_t i = 0; i < pictures; ++i)
        fill({{0, row, 0, 0}, {seed, static_cast<uint32_t>(first + i)}}, size, out + i * size);
}

}  // namespace pyflow
