// The loops of philox.cpp, compiled once for each instruction set by each_isa.inl. They use only operations that IEEE
// 754 rounds exactly, in one order, so that every instruction set gives the same bits; integers become doubles by
// placing them in the mantissa of 2^52, which needs nothing that SSE2 lacks.

// The first `blocks` Philox blocks of a tile, word by word.
inline void philox_tile(const PhiloxStart& start, uint32_t first_block, uint32_t blocks, Tile<uint32_t>& words) {
    const uint32_t start0 = start.counter[0] + first_block;
    const uint32_t start1 = start.counter[1], start2 = start.counter[2], start3 = start.counter[3];
    const uint32_t key0 = start.key[0], key1 = start.key[1];
    for (uint32_t i = 0; i < blocks; ++i) {
        uint32_t c0 = start0 + i, c1 = start1, c2 = start2, c3 = start3, k0 = key0, k1 = key1;
#pragma GCC unroll 10
        for (int round = 0; round < 10; ++round) {
            const uint64_t product0 = uint64_t{0xD2511F53} * c0, product1 = uint64_t{0xCD9E8D57} * c2;
            c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
            c1 = static_cast<uint32_t>(product1);
            c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
            c3 = static_cast<uint32_t>(product0);
            k0 += 0x9E3779B9;
            k1 += 0xBB67AE85;
        }
        words[0][i] = c0;
        words[1][i] = c1;
        words[2][i] = c2;
        words[3][i] = c3;
    }
}

// -2*log(u) for u in (0, 1): u = m * 2^e with m in [sqrt(1/2), sqrt(2)), log(m) = 2*atanh((m-1)/(m+1)). The odd series
// ends at the 15th power of 0.172: what is left out is below 3e-14 of the value.
inline double minus_two_log(double u) {
    constexpr uint64_t sqrt_half = 0x3FE6A09E667F3BCD, bias = uint64_t{64} << 52;
    const uint64_t bits = bits_of(u);
    const uint64_t exponent = (bits - sqrt_half + bias) >> 52;  // e + 64
    const double m = double_of(bits - (exponent << 52) + bias);
    const double e = double_of(exponent | kTwo52Bits) - (kTwo52 + 64);
    const double f = (m - 1) / (m + 1), g = f * f;
    double series = 1.0 / 15;
    series = series * g + 1.0 / 13;
    series = series * g + 1.0 / 11;
    series = series * g + 1.0 / 9;
    series = series * g + 1.0 / 7;
    series = series * g + 1.0 / 5;
    series = series * g + 1.0 / 3;
    series = series * g + 1.0;
    return -2 * (e * 0.69314718055994530942 + 2 * f * series);
}

// Taylor to the 13th power, for |x| <= pi/4: what is left out is below 3e-14 of the value.
inline double sine(double x) {
    const double y = x * x;
    double series = 1.0 / 6227020800;
    series = series * y - 1.0 / 39916800;
    series = series * y + 1.0 / 362880;
    series = series * y - 1.0 / 5040;
    series = series * y + 1.0 / 120;
    series = series * y - 1.0 / 6;
    return x + x * y * series;
}

// Taylor to the 14th power, for |x| <= pi/4: what is left out is below 2e-15.
inline double cosine(double x) {
    const double y = x * x;
    double series = -1.0 / 87178291200;
    series = series * y + 1.0 / 479001600;
    series = series * y - 1.0 / 3628800;
    series = series * y + 1.0 / 40320;
    series = series * y - 1.0 / 720;
    series = series * y + 1.0 / 24;
    series = series * y - 0.5;
    return 1 + y * series;
}

// Box-Muller as in noise.py: 32 bits of radius, 24 of angle. The angle is split into a quadrant and a rest of at most
// an eighth of a turn in integers, so that the reduction is exact.
inline void box_muller_tile(const uint32_t* radius_word, const uint32_t* angle_word, uint32_t blocks, float* first,
                            float* second) {
    constexpr double radians = 6.28318530717958647693 / 16777216;
    for (uint32_t i = 0; i < blocks; ++i) {
        const double u = (double_of(radius_word[i] | kTwo52Bits) - (kTwo52 - 0.5)) * (1.0 / 4294967296);
        const uint32_t angle = angle_word[i] >> 8, quadrant = (angle + (1u << 21)) >> 22;
        const int32_t rest = static_cast<int32_t>(angle - (quadrant << 22));
        const double x = (rest + 0.5) * radians, radius = std::sqrt(minus_two_log(u));
        const uint32_t along = bits_of(static_cast<float>(radius * cosine(x)));
        const uint32_t across = bits_of(static_cast<float>(radius * sine(x)));
        // quadrants 0..3: (c, s), (-s, c), (-c, -s), (s, -c)
        const uint32_t swap = (along ^ across) & (0u - (quadrant & 1));
        first[i] = float_of((along ^ swap) ^ (((quadrant + 1) & 2) << 30));
        second[i] = float_of((across ^ swap) ^ ((quadrant & 2) << 30));
    }
}

template <class Number>
inline void interleave(const Tile<Number>& tile, int64_t blocks, Number* out) {
    for (int64_t i = 0; i < blocks; ++i)
        for (int64_t j = 0; j < 4; ++j) out[4 * i + j] = tile[j][i];
}

// Whole tiles go straight to `out`; the last one goes through a buffer that is cut to size. Of it no more is made than
// whole vectors ask for: two numbers took 1.26 us as a whole tile, and 0.15 so (Zen 5, AVX-512).
template <class Number, class Fill>
inline void in_tiles(int64_t size, Number* out, Fill fill) {
    alignas(64) Tile<Number> tile;
    for (int64_t begin = 0; begin < size; begin += 4 * kTileBlocks) {
        const int64_t left = size - begin, vectors = (left + 4 * kVectorBlocks - 1) / (4 * kVectorBlocks);
        const int64_t blocks = std::min(vectors * kVectorBlocks, kTileBlocks);
        fill(static_cast<uint32_t>(begin / 4), static_cast<uint32_t>(blocks), tile);
        if (left >= 4 * blocks) {
            interleave(tile, blocks, out + begin);
        } else {
            Number last[4 * kTileBlocks];
            interleave(tile, blocks, last);
            std::memcpy(out + begin, last, left * sizeof(Number));
        }
    }
}

void philox_words(const PhiloxStart& start, int64_t blocks, uint32_t* out) {
    in_tiles(4 * blocks, out,
             [&](uint32_t block, uint32_t count, Tile<uint32_t>& tile) { philox_tile(start, block, count, tile); });
}

void normal(const PhiloxStart& start, int64_t size, float* out) {
    alignas(64) Tile<uint32_t> words;
    in_tiles(size, out, [&](uint32_t block, uint32_t count, Tile<float>& tile) {
        philox_tile(start, block, count, words);
        box_muller_tile(words[0], words[1], count, tile[0], tile[1]);
        box_muller_tile(words[2], words[3], count, tile[2], tile[3]);
    });
}
