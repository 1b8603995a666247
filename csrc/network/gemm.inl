// The micro-kernel: a few rows times a panel of packed weights, summed in registers, and its epilogue.
//
// Each sum runs over taps, then over steps, whatever the number of rows at once: a row alone and in a block gives the
// same bits.

#if PYFLOW_LEVEL >= 2
constexpr int kRows = 12;  // 12 rows by 2 vectors: 24 of 32 registers hold sums
#elif PYFLOW_LEVEL == 1
constexpr int kRows = 6;
#else
constexpr int kRows = 2;
#endif
constexpr int kStep = 4;  // bytes of a row in a step

// Rows of `a` times columns of `weights`, to `out`. Strides are in bytes on the left, in floats on the right.
struct Product {
    const uint8_t* a;
    int64_t a_row;
    const int64_t* taps;  // the byte offset of each tap from `a`
    int64_t tap_count, steps;
    const uint8_t* weights;  // of the first panel
    int64_t panel_bytes;
    const float *bias, *scales, *other;  // null: none
    int64_t other_row;
    float* out;
    int64_t out_row, columns;
    bool silu;
};

// The finished values of one vector of columns.
PYFLOW_INLINE V finished(const Product& product, V value, int64_t row, int64_t column, int64_t count) {
    if (product.scales) value = value * load(product.scales + column);
    if (product.bias) value = value + load(product.bias + column);
    if (product.other) value = value + load_some(product.other + row * product.other_row + column, count);
    return product.silu ? silu(value) : value;
}

// A whole block, without the questions that `finished` asks of each vector: of 32 to 64 inputs they took a fifth of a
// product's time.
template <class P, int rows, int vectors, bool biased, bool with_other>
PYFLOW_INLINE void put_block(const Product& product, const typename P::Sum (&sums)[rows][vectors], int64_t row,
                             int64_t column) {
    constexpr bool scaled = std::is_same<P, U8S8>::value;
    V scales[vectors], bias[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
        if (scaled) scales[v] = load(product.scales + column + v * kLanes);
        if (biased) bias[v] = load(product.bias + column + v * kLanes);
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            const int64_t at = column + v * kLanes;
            V value = P::value(sums[r][v]);
            if (scaled) value = value * scales[v];
            if (biased) value = value + bias[v];
            if (with_other) value = value + load(product.other + (row + r) * product.other_row + at);
            store(product.out + (row + r) * product.out_row + at, value);
        }
}

// `rows` rows from `row` by `vectors` vectors of columns from `column`; `weights` and `width` are of their panel.
template <class P, int rows, int vectors>
inline void block(const Product& product, int64_t row, int64_t column, const uint8_t* weights, int64_t width) {
    typename P::Sum sums[rows][vectors];
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) sums[r][v] = P::zero();
    const int64_t stride = product.a_row, step_bytes = width * kStep;
    for (int64_t tap = 0; tap < product.tap_count; ++tap) {
        // Three rows to a base, so that each row is one addressing mode away.
        const uint8_t* bases[(rows + 2) / 3];
#pragma GCC unroll 4
        for (int r = 0; r < (rows + 2) / 3; ++r) bases[r] = product.a + product.taps[tap] + (row + 3 * r) * stride;
        for (int64_t step = 0; step < product.steps; ++step) {
#pragma GCC unroll 12
            for (int r = 0; r < rows; ++r) {
                const auto a = P::row(reinterpret_cast<const Word*>(bases[r / 3] + (r % 3) * stride));
#pragma GCC unroll 8
                for (int v = 0; v < vectors; ++v) sums[r][v] = P::mac(a, weights + v * kLanes * kStep, sums[r][v]);
            }
#pragma GCC unroll 4
            for (int r = 0; r < (rows + 2) / 3; ++r) bases[r] += kStep;
            weights += step_bytes;
        }
    }
    if (!product.silu && product.columns - column >= vectors * kLanes) {
        if (product.other) return put_block<P, rows, vectors, true, true>(product, sums, row, column);
        if (product.bias) return put_block<P, rows, vectors, true, false>(product, sums, row, column);
        return put_block<P, rows, vectors, false, false>(product, sums, row, column);
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            const int64_t at = column + v * kLanes, left = product.columns - at;
            if (left <= 0) continue;
            const int64_t count = left < kLanes ? left : kLanes;
            const V value = finished(product, P::value(sums[r][v]), row + r, at, count);
            float* out = product.out + (row + r) * product.out_row + at;
            store_lanes(out, value, count);
        }
}

// Three layers of 256x256 from L2: 3.9 us without a prefetch, 3.5 with one of 512 or 1024 bytes, 3.7 with 2048.
constexpr int64_t kAhead = 512;

// A single row by four whole panels: one panel alone would wait for each sum.
template <class P>
inline void row_by_four_panels(const Product& product, int64_t row, int64_t column, const uint8_t* weights) {
    constexpr int vectors = kPanel / kLanes;
    typename P::Sum sums[4][vectors];
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sums[p][v] = P::zero();
    for (int64_t tap = 0; tap < product.tap_count; ++tap) {
        const uint8_t* a = product.a + product.taps[tap] + row * product.a_row;
        for (int64_t step = 0; step < product.steps; ++step, a += kStep, weights += kPanel * kStep) {
            const auto value = P::row(reinterpret_cast<const Word*>(a));
#pragma GCC unroll 4
            for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v) {
                    const uint8_t* from = weights + p * product.panel_bytes + v * kLanes * kStep;
                    __builtin_prefetch(from + kAhead);
                    sums[p][v] = P::mac(value, from, sums[p][v]);
                }
        }
    }
    for (int p = 0; p < 4; ++p)
        for (int v = 0; v < vectors; ++v) {
            const int64_t at = column + p * kPanel + v * kLanes;
            store(product.out + row * product.out_row + at, finished(product, P::value(sums[p][v]), row, at, kLanes));
        }
}

template <class P, int vectors>
inline void rows_by_vectors(const Product& product, int64_t rows, int64_t row, int64_t column, const uint8_t* weights,
                            int64_t width) {
    switch (rows) {
        case 1:
            return block<P, 1, vectors>(product, row, column, weights, width);
        case 2:
            return block<P, 2, vectors>(product, row, column, weights, width);
#if PYFLOW_LEVEL >= 1
        case 3:
            return block<P, 3, vectors>(product, row, column, weights, width);
        case 4:
            return block<P, 4, vectors>(product, row, column, weights, width);
        case 6:
            return block<P, 6, vectors>(product, row, column, weights, width);
#endif
#if PYFLOW_LEVEL >= 2
        case 8:
            return block<P, 8, vectors>(product, row, column, weights, width);
        case 12:
            return block<P, 12, vectors>(product, row, column, weights, width);
#endif
    }
}

// How many of the rows that are left to take next: of the heights that there are, so that none is left alone with a
// latency to wait for.
inline int64_t block_of(int64_t left) {
#if PYFLOW_LEVEL >= 2
    constexpr int64_t heights[] = {0, 1, 2, 3, 4, 3, 6, 4, 8, 6, 6, 8, 12, 6, 8, 12, 8};
#elif PYFLOW_LEVEL == 1
    constexpr int64_t heights[] = {0, 1, 2, 3, 4, 3, 6, 4, 4};
#else
    constexpr int64_t heights[] = {0, 1, 2};
#endif
    constexpr int64_t known = sizeof(heights) / sizeof(heights[0]);
    return left < known ? heights[left] : kRows;
}

inline int64_t width_of(int64_t columns_left) { return columns_left > kNarrowPanel ? kPanel : kNarrowPanel; }

// All rows by one panel.
template <class P>
inline void rows_by_panel(const Product& product, int64_t rows, int64_t column, const uint8_t* weights, int64_t width) {
    for (int64_t row = 0, count; row < rows; row += count) {
        count = block_of(rows - row);
#if PYFLOW_LEVEL == 1
        for (int64_t half = 0; half < width; half += 2 * kLanes)
            rows_by_vectors<P, 2>(product, count, row, column + half, weights + half * kStep, width);
#else
        if (width == kPanel)
            rows_by_vectors<P, 2>(product, count, row, column, weights, width);
        else
            rows_by_vectors<P, 1>(product, count, row, column, weights, width);
#endif
    }
}

// All rows by all panels.
template <class P>
inline void multiply(const Product& product, int64_t rows) {
    int64_t column = 0;
    const uint8_t* weights = product.weights;
    if (rows == 1)
        for (; product.columns - column >= 4 * kPanel; column += 4 * kPanel, weights += 4 * product.panel_bytes)
            row_by_four_panels<P>(product, 0, column, weights);
    for (; column < product.columns; column += kPanel, weights += product.panel_bytes)
        rows_by_panel<P>(product, rows, column, weights, width_of(product.columns - column));
}
