// 3x3 convolutions by Winograd's F(m, 3) along each axis: tiles of m_y x m_x outputs from (m_y+2) x (m_x+2) inputs, one
// small product for each of those positions: 16/36 (2x2), 24/72 (2x4) or 36/144 (4x4) of the multiplications.
//
// Weights are transformed here, a panel at a time, just before they are used: read as nine taps they are a quarter of
// the bytes, and below L2 bytes are what a small batch waits for. Those of 2x2 in bfloat16 are transformed in the file.

template <int m>
struct Winograd;

template <>
struct Winograd<2> {
    static constexpr int n = 4;
    static PYFLOW_INLINE void input(const V* d, V* t) {
        t[0] = d[0] - d[2];
        t[1] = d[1] + d[2];
        t[2] = d[2] - d[1];
        t[3] = d[1] - d[3];
    }
    static PYFLOW_INLINE void filter(const V* g, V* u) {
        const V half = set(0.5f), ends = (g[0] + g[2]) * half, middle = g[1] * half;
        u[0] = g[0];
        u[1] = ends + middle;
        u[2] = ends - middle;
        u[3] = g[2];
    }
    static PYFLOW_INLINE void output(const V* p, V* y) {
        y[0] = p[0] + p[1] + p[2];
        y[1] = p[1] - p[2] - p[3];
    }
};

// At the points 0, +-5/8, +-3/2 and infinity. The usual 0, +-1, +-2 err twice as much, three times at worst: 2.2e-6 of
// the deviation against 1.0e-6 (128 inputs), at the same number of operations.
template <>
struct Winograd<4> {
    static constexpr int n = 6;
    static constexpr float a = 0.625f, b = 1.5f, a2 = a * a, b2 = b * b;
    static constexpr float over_a = 1 / (2 * a2 * (a2 - b2)), over_b = 1 / (2 * b2 * (b2 - a2));

    static PYFLOW_INLINE void input(const V* d, V* t) {
        const V even_a = fnma(set(b2), d[2], d[4]), odd_a = fnma(set(b2), d[1], d[3]);
        const V even_b = fnma(set(a2), d[2], d[4]), odd_b = fnma(set(a2), d[1], d[3]);
        t[0] = fma(set(a2 * b2), d[0], fnma(set(a2 + b2), d[2], d[4]));
        t[1] = fma(set(a), odd_a, even_a);
        t[2] = fnma(set(a), odd_a, even_a);
        t[3] = fma(set(b), odd_b, even_b);
        t[4] = fnma(set(b), odd_b, even_b);
        t[5] = fma(set(a2 * b2), d[1], fnma(set(a2 + b2), d[3], d[5]));
    }
    static PYFLOW_INLINE void filter(const V* g, V* u) {
        const V even_a = fma(set(a2 * over_a), g[2], set(over_a) * g[0]), odd_a = set(a * over_a) * g[1];
        const V even_b = fma(set(b2 * over_b), g[2], set(over_b) * g[0]), odd_b = set(b * over_b) * g[1];
        u[0] = set(1 / (a2 * b2)) * g[0];
        u[1] = even_a + odd_a;
        u[2] = even_a - odd_a;
        u[3] = even_b + odd_b;
        u[4] = even_b - odd_b;
        u[5] = g[2];
    }
    static PYFLOW_INLINE void output(const V* p, V* y) {
        const V sum_a = p[1] + p[2], gap_a = p[1] - p[2], sum_b = p[3] + p[4], gap_b = p[3] - p[4];
        y[0] = p[0] + sum_a + sum_b;
        y[1] = fma(set(b), gap_b, set(a) * gap_a);
        y[2] = fma(set(b2), sum_b, set(a2) * sum_a);
        y[3] = fma(set(b2 * b), gap_b, fma(set(a2 * a), gap_a, p[5]));
    }
};

// Where the parts of a call lie in its scratch. Positions are 64 bytes further apart than their size: at powers of two
// all of them would compete for the same cache lines.
template <int my, int mx, class P>
struct WinogradPlan {
    static constexpr int ny = my + 2, nx = mx + 2, positions = ny * nx;
    static constexpr int64_t element = std::is_same<P, F32>::value ? 4 : 2;
    static constexpr bool transforms = element == 4 || my * mx > 4;  // as holds_positions says

    explicit WinogradPlan(const Convolve& c)
        : inputs(c.input.channels),
          panels((c.output.channels + kPanel - 1) / kPanel),
          across(c.output.width / mx),
          down(c.output.height / my),
          tiles(c.pictures * across * down),
          block(winograd_block({my, mx}, inputs, c.output.channels, tiles, element)),
          blocks((tiles + block - 1) / block),
          row_bytes(inputs * element),
          input_position(block * row_bytes + 64),
          sum_position(block * kPanel + 16),
          filter_position(row_bytes * kPanel + 64),
          filter_panel(filter_position * positions) {
        auto* at = static_cast<uint8_t*>(c.scratch);
        transformed = at;
        at += (positions * input_position + 63) / 64 * 64;
        sums = reinterpret_cast<float*>(at);
        at += positions * sum_position * 4;
        filters = at;
    }

    // The first output of a tile.
    struct Corner {
        int64_t picture, y, x;
    };
    Corner corner(int64_t tile) const {
        return {tile / (across * down), tile / across % down * my, tile % across * mx};
    }

    int64_t inputs, panels, across, down, tiles, block, blocks;
    int64_t row_bytes, input_position, sum_position, filter_position, filter_panel;
    uint8_t* transformed;
    float* sums;
    uint8_t* filters;
};

PYFLOW_INLINE void store_as(F32, uint8_t* to, V value, int64_t count) {
    store_lanes(reinterpret_cast<float*>(to), value, count);
}
PYFLOW_INLINE void store_as(BF16, uint8_t* to, V value, int64_t count) {
    store_bf16(reinterpret_cast<uint16_t*>(to), value, count);
}
PYFLOW_INLINE V load_as(F32, const uint8_t* from) { return load(reinterpret_cast<const float*>(from)); }
PYFLOW_INLINE V load_as(BF16, const uint8_t* from) { return load_bf16(reinterpret_cast<const uint16_t*>(from)); }

template <int my, int mx, class P>
inline void transform_input(const Convolve& c, const WinogradPlan<my, mx, P>& plan, int64_t first, int64_t count) {
    constexpr int ny = my + 2, nx = mx + 2;
    for (int64_t tile = 0; tile < count; ++tile) {
        const auto [picture, y, x] = plan.corner(first + tile);
        const float* corner = c.input.at<float>(picture, y - 1, x - 1);
        uint8_t* to = plan.transformed + tile * plan.row_bytes;
        for (int64_t channel = 0; channel < plan.inputs; channel += kLanes) {
            const int64_t left = plan.inputs - channel, lanes = left < kLanes ? left : kLanes;
            V columns[ny][nx];  // transformed along y
#pragma GCC unroll 6
            for (int j = 0; j < nx; ++j) {
                V d[ny], t[ny];
#pragma GCC unroll 6
                for (int i = 0; i < ny; ++i) {
                    const float* from = corner + i * c.input.row + j * c.input.pixel + channel;
                    d[i] = load_lanes(from, lanes);
                }
                Winograd<my>::input(d, t);
#pragma GCC unroll 6
                for (int i = 0; i < ny; ++i) columns[i][j] = t[i];
            }
#pragma GCC unroll 6
            for (int i = 0; i < ny; ++i) {
                V t[nx];
                Winograd<mx>::input(columns[i], t);
#pragma GCC unroll 6
                for (int j = 0; j < nx; ++j)
                    store_as(P{}, to + (i * nx + j) * plan.input_position + channel * plan.element, t[j], lanes);
            }
        }
    }
}

// Nine streams that are read beside 36 that are written are more than the processor follows by itself: a 4x4 layer of
// 256 channels at 16x16, batch 1, its weights in memory, takes 0.57 ms without a prefetch, 0.50 with one of 512 bytes,
// 0.48 with 1024 or 2048 (float32, Zen 5).
constexpr int64_t kTapsAhead = 1024;

// The nine taps of a panel, each of `size` numbers, to its positions.
template <int my, int mx, class P>
inline void transform_filters(const uint8_t* taps, int64_t size, uint8_t* to, int64_t position) {
    constexpr int ny = my + 2, nx = mx + 2;
    constexpr int64_t element = WinogradPlan<my, mx, P>::element;
    for (int64_t at = 0; at < size; at += kLanes) {
        V columns[ny][3];
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
            V g[3], u[ny];
#pragma GCC unroll 3
            for (int i = 0; i < 3; ++i) {
                const uint8_t* from = taps + ((3 * i + j) * size + at) * element;
                __builtin_prefetch(from + kTapsAhead);
                g[i] = load_as(P{}, from);
            }
            Winograd<my>::filter(g, u);
#pragma GCC unroll 6
            for (int i = 0; i < ny; ++i) columns[i][j] = u[i];
        }
#pragma GCC unroll 6
        for (int i = 0; i < ny; ++i) {
            V u[nx];
            Winograd<mx>::filter(columns[i], u);
#pragma GCC unroll 6
            for (int j = 0; j < nx; ++j) store_as(P{}, to + (i * nx + j) * position + at * element, u[j], kLanes);
        }
    }
}

template <int my, int mx, class P>
inline void transform_output(const Convolve& c, const WinogradPlan<my, mx, P>& plan, int64_t first, int64_t count,
                             int64_t column) {
    constexpr int ny = my + 2, nx = mx + 2;
    const int64_t columns = c.output.channels - column < kPanel ? c.output.channels - column : kPanel;
    for (int64_t tile = 0; tile < count; ++tile) {
        const auto [picture, y, x] = plan.corner(first + tile);
        for (int64_t at = 0; at < columns; at += kLanes) {
            const int64_t left = columns - at, lanes = left < kLanes ? left : kLanes;
            const float* from = plan.sums + tile * kPanel + at;
            V half[my][nx];
#pragma GCC unroll 6
            for (int j = 0; j < nx; ++j) {
                V p[ny], q[my];
#pragma GCC unroll 6
                for (int i = 0; i < ny; ++i) p[i] = load(from + (i * nx + j) * plan.sum_position);
                Winograd<my>::output(p, q);
#pragma GCC unroll 4
                for (int i = 0; i < my; ++i) half[i][j] = q[i];
            }
            const V bias = c.bias ? load(c.bias + column + at) : set(0.0f);
#pragma GCC unroll 4
            for (int i = 0; i < my; ++i) {
                V q[mx];
                Winograd<mx>::output(half[i], q);
                float* out = c.output.at<float>(picture, y + i, x) + column + at;
                const float* other = c.other.data ? c.other.at<float>(picture, y + i, x) + column + at : nullptr;
#pragma GCC unroll 4
                for (int j = 0; j < mx; ++j) {
                    V value = q[j] + bias;
                    if (other) value = value + load_some(other + j * c.other.pixel, lanes);
                    if (c.silu) value = silu(value);
                    store_as(F32{}, reinterpret_cast<uint8_t*>(out + j * c.output.pixel), value, lanes);
                }
            }
        }
    }
}

template <int my, int mx, class P>
inline void convolve_winograd(const Convolve& c) {
    const WinogradPlan<my, mx, P> plan(c);
    constexpr int64_t no_offset = 0;
    Product product{};
    product.taps = &no_offset;
    product.tap_count = 1;
    product.steps = plan.row_bytes / kStep;
    product.a_row = plan.row_bytes;
    product.out_row = kPanel;
    const auto* weights = static_cast<const uint8_t*>(c.weights);
    const int64_t held_panel = plan.row_bytes * kPanel * (plan.transforms ? 9 : plan.positions);
    for (int64_t b = 0; b < plan.blocks; ++b) {
        const int64_t first = b * plan.block;
        const int64_t count = plan.tiles - first < plan.block ? plan.tiles - first : plan.block;
        transform_input(c, plan, first, count);
        for (int64_t panel = 0; panel < plan.panels; ++panel) {
            const int64_t column = panel * kPanel, width = width_of(c.output.channels - column);
            const uint8_t* filters = weights + panel * held_panel;
            int64_t filter_position = plan.row_bytes * width;
            if constexpr (plan.transforms) {
                // One block asks for each panel once: all of them may use the same, cached, memory.
                uint8_t* made = plan.filters + (plan.blocks > 1 ? panel : 0) * plan.filter_panel;
                if (b == 0) transform_filters<my, mx, P>(filters, plan.inputs * width, made, plan.filter_position);
                filters = made;
                filter_position = plan.filter_position;
            }
            product.columns = width;
            for (int position = 0; position < plan.positions; ++position) {
                product.a = plan.transformed + position * plan.input_position;
                product.out = plan.sums + position * plan.sum_position;
                rows_by_panel<P>(product, count, 0, filters + position * filter_position, width);
            }
            transform_output(c, plan, first, count, column);
        }
    }
}

template <class P>
inline void convolve_by_algorithm(const Convolve& c) {
    switch (c.algorithm) {
        case Algorithm::direct:
            return convolve_direct<P>(c);
        case Algorithm::winograd2:
            return convolve_winograd<2, 2, P>(c);
        case Algorithm::winograd4:
            return convolve_winograd<4, 4, P>(c);
        case Algorithm::winograd2x4:
            return convolve_winograd<2, 4, P>(c);
    }
}

inline void convolve(const Convolve& c) {
    // A level compiles only those products that it does better than the one below.
#if PYFLOW_LEVEL == 4
    if (c.weights_type == Type::f32) return avx512::convolve(c);
    if (c.weights_type == Type::s8) return avx512_vnni::convolve(c);
#elif PYFLOW_LEVEL == 3
    if (c.weights_type != Type::s8) return avx512::convolve(c);
#else
    if (c.weights_type == Type::f32) return convolve_by_algorithm<F32>(c);
#endif
#if PYFLOW_LEVEL != 3
    if (c.weights_type == Type::bf16) return convolve_by_algorithm<BF16>(c);
#endif
#if PYFLOW_LEVEL != 4
    convolve_direct<U8S8>(c);
#endif
}
