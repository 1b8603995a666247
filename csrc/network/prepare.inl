// What a convolution reads: norm, FiLM, SiLU, upsampling and the cast, in two passes over a picture in the L2 cache.

struct PrepareRows {
    explicit PrepareRows(const Prepare& p) {
        const int64_t row = PrepareScratch(p.input.channels).row;
        mean = static_cast<float*>(p.scratch);
        rest = mean + row;
        squares = rest + row;
        scale = squares + row;
        shift = scale + row;
    }

    float *mean, *rest, *squares, *scale, *shift;
};

PYFLOW_INLINE V middle_of(V a, V b, V c) { return max(min(a, b), min(max(a, b), c)); }

// Mean and sum of squared deviations of a few vectors of channels, of which the last has `lanes`.
//
// A run of rows is summed about the mean of the runs before it, the first one about a pixel that is no outlier, and
// then joined to them. So no sum is long, and none is large beside what it tells: a mean of a thousand deviations costs
// no digits.
template <int vectors>
inline void channel_moments(const Prepare& p, int64_t n, int64_t channel, int64_t lanes, const PrepareRows& rows) {
    constexpr int chains = 4 / vectors;  // sums that do not wait for each other
    constexpr int64_t pixels_of_run = 64;
    const View& input = p.input;
    const int64_t width = input.width, rows_of_run = width < pixels_of_run ? pixels_of_run / width : 1;
    V mean[vectors], rest[vectors], deviations[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
        const int64_t at = channel + v * kLanes;
        mean[v] = middle_of(load_lanes(input.at<float>(n, 0, 0) + at, lanes),
                            load_lanes(input.at<float>(n, input.height / 2, width / 2) + at, lanes),
                            load_lanes(input.at<float>(n, input.height - 1, width - 1) + at, lanes));
        rest[v] = deviations[v] = set(0.0f);
    }
    int64_t seen = 0;
    for (int64_t top = 0, bottom; top < input.height; top = bottom) {
        bottom = top + rows_of_run < input.height ? top + rows_of_run : input.height;
        V sums[chains][vectors], squares[chains][vectors];
#pragma GCC unroll 4
        for (int chain = 0; chain < chains; ++chain)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) sums[chain][v] = squares[chain][v] = set(0.0f);
        for (int64_t y = top; y < bottom; ++y) {
            const float* pixel = input.at<float>(n, y, 0) + channel;
            int64_t left = width;
            for (; left >= chains; left -= chains)
#pragma GCC unroll 4
                for (int chain = 0; chain < chains; ++chain, pixel += input.pixel)
#pragma GCC unroll 4
                    for (int v = 0; v < vectors; ++v) {
                        const V d = load_lanes(pixel + v * kLanes, lanes) - mean[v];
                        sums[chain][v] = sums[chain][v] + d;
                        squares[chain][v] = fma(d, d, squares[chain][v]);
                    }
            for (; left > 0; --left, pixel += input.pixel)
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v) {
                    const V d = load_lanes(pixel + v * kLanes, lanes) - mean[v];
                    sums[0][v] = sums[0][v] + d;
                    squares[0][v] = fma(d, d, squares[0][v]);
                }
        }
        const float before = static_cast<float>(seen);
        seen += (bottom - top) * width;
        const float now = static_cast<float>(seen);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
#pragma GCC unroll 4
            for (int chain = 1; chain < chains; ++chain) {
                sums[0][v] = sums[0][v] + sums[chain][v];
                squares[0][v] = squares[0][v] + squares[chain][v];
            }
            const V step = fma(rest[v], set(before / now), sums[0][v] * set(1.0f / now));
            const V about_mean = fma(rest[v] * set(before), rest[v], deviations[v] + squares[0][v]);
            deviations[v] = fnma(step * set(now), step, about_mean);
            const V next = mean[v] + step;
            rest[v] = step - (next - mean[v]);
            mean[v] = next;
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
        const int64_t at = channel + v * kLanes;
        store_lanes(rows.mean + at, mean[v], lanes);
        store_lanes(rows.rest + at, rest[v], lanes);
        store_lanes(rows.squares + at, deviations[v], lanes);
    }
}

inline void picture_moments(const Prepare& p, int64_t n, const PrepareRows& rows) {
    const int64_t channels = p.input.channels;
    int64_t channel = 0;
    for (; channels - channel >= 4 * kLanes; channel += 4 * kLanes) channel_moments<4>(p, n, channel, kLanes, rows);
    if (channels - channel >= 2 * kLanes) {
        channel_moments<2>(p, n, channel, kLanes, rows);
        channel += 2 * kLanes;
    }
    for (; channel < channels; channel += kLanes) channel_moments<1>(p, n, channel, lanes_of(channels - channel), rows);
}

// Of a group's values, the mean in two parts.
struct Standard {
    float mean, rest, inverse_deviation;
};

// Chan's formula over the channels of a group. A NaN stays one.
inline Standard standard_of(const Prepare& p, int64_t begin, int64_t count, const PrepareRows& rows) {
    double total = 0.0;
    for (int64_t c = begin; c < begin + count; ++c) total += double{rows.mean[c]} + rows.rest[c];
    const double mean = total / static_cast<double>(count);
    const double pixels = static_cast<double>(p.input.height * p.input.width);
    double squares = 0.0;
    for (int64_t c = begin; c < begin + count; ++c) {
        const double d = double{rows.mean[c]} + rows.rest[c] - mean;
        squares += pixels * d * d + rows.squares[c];
    }
    const double variance = squares < 0.0 ? 0.0 : squares / (pixels * static_cast<double>(count));
    const float rounded = static_cast<float>(mean);
    return {rounded, static_cast<float>(mean - rounded),
            static_cast<float>(1.0 / __builtin_sqrt(variance + p.epsilon))};
}

// Norm and FiLM as one multiplication and one addition a channel.
inline void fold(const Prepare& p, int64_t n, const PrepareRows& rows) {
    const int64_t channels = p.input.channels, groups = p.groups > 0 ? p.groups : 1, count = channels / groups;
    const float* film = p.film ? p.film + p.condition[n] * p.film_stride : nullptr;
    for (int64_t group = 0; group < groups; ++group) {
        const int64_t begin = group * count, end = begin + count;
        const Standard standard = p.groups > 0 ? standard_of(p, begin, count, rows) : Standard{0.0f, 0.0f, 1.0f};
        for (int64_t c = begin; c < end; c += kLanes) {
            const int64_t lanes = lanes_of(end - c);
            V scale = set(standard.inverse_deviation), shift = set(0.0f);
            if (p.groups > 0) {
                scale = scale * load_lanes(p.gamma + c, lanes);
                shift = load_lanes(p.beta + c, lanes);
            }
            if (film) {
                const V factor = set(1.0f) + load_lanes(film + c, lanes);
                scale = scale * factor;
                shift = fma(shift, factor, load_lanes(film + channels + c, lanes));
            }
            // From the rounded scale, so that what is left of a large mean is the rounding of one sum.
            shift = fnma(set(standard.mean), scale, fnma(set(standard.rest), scale, shift));
            store_lanes(rows.scale + c, scale, lanes);
            store_lanes(rows.shift + c, shift, lanes);
        }
    }
}

// How a value is written in each type.
struct AsF32 {
    using Number = float;
    explicit AsF32(const Prepare&) {}
    static constexpr float zero = 0.0f;
    PYFLOW_INLINE void put(float* to, V value, int64_t lanes) const { store_lanes(to, value, lanes); }
};
struct AsBF16 {
    using Number = uint16_t;
    explicit AsBF16(const Prepare&) {}
    static constexpr uint16_t zero = 0;
    PYFLOW_INLINE void put(uint16_t* to, V value, int64_t lanes) const { store_bf16(to, value, lanes); }
};
// A NaN becomes 255, whatever the instruction set.
struct AsU8 {
    using Number = uint8_t;
    explicit AsU8(const Prepare& p)
        : inverse(set(1.0f / p.scale)), offset(set(static_cast<float>(p.zero))), zero(static_cast<uint8_t>(p.zero)) {}
    PYFLOW_INLINE void put(uint8_t* to, V value, int64_t lanes) const {
        store_u8(to, min(max(set(0.0f), fma(value, inverse, offset)), set(255.0f)), lanes);
    }
    V inverse, offset;
    uint8_t zero;
};

template <class Number>
inline void fill_pixels(const View& view, Number* first, int64_t pixels, Number value) {
    const bool whole = view.pixel == view.channels;
    const int64_t runs = whole ? 1 : pixels, run = whole ? pixels * view.channels : view.channels;
    for (int64_t i = 0; i < runs; ++i, first += view.pixel)
        for (int64_t c = 0; c < run; ++c) first[c] = value;
}

template <class Number>
inline void fill_border(const View& view, int64_t n, Number value) {
    const int64_t border = view.border, across = view.width + 2 * border;
    for (int64_t i = 1; i <= border; ++i) {
        fill_pixels(view, view.at<Number>(n, -i, -border), across, value);
        fill_pixels(view, view.at<Number>(n, view.height - 1 + i, -border), across, value);
    }
    for (int64_t y = 0; border > 0 && y < view.height; ++y) {
        fill_pixels(view, view.at<Number>(n, y, -border), border, value);
        fill_pixels(view, view.at<Number>(n, y, view.width), border, value);
    }
}

// Some channels of a pixel, `copies` times in a row.
template <class As, bool with_silu, int copies>
PYFLOW_INLINE void write_channels(const As& as, const float* from, const float* scale, const float* shift,
                                  int64_t lanes, typename As::Number* to, int64_t pixel) {
    V value = fma(load_lanes(from, lanes), load_lanes(scale, lanes), load_lanes(shift, lanes));
    if (with_silu) value = silu(value);
#pragma GCC unroll 2
    for (int copy = 0; copy < copies; ++copy) as.put(to + copy * pixel, value, lanes);
}

template <class As, bool with_silu, int copies>
inline void write_picture(const Prepare& p, const As& as, int64_t n, const PrepareRows& rows) {
    const int64_t channels = p.input.channels, whole = channels / kLanes * kLanes, pixel = p.output.pixel;
    const float *scale = rows.scale, *shift = rows.shift;
    for (int64_t y = 0; y < p.output.height; ++y) {
        const float* from = p.input.at<float>(n, y / copies, 0);
        auto* to = p.output.at<typename As::Number>(n, y, 0);
        for (int64_t x = 0; x < p.input.width; ++x, from += p.input.pixel, to += copies * pixel) {
            for (int64_t c = 0; c < whole; c += kLanes)
                write_channels<As, with_silu, copies>(as, from + c, scale + c, shift + c, kLanes, to + c, pixel);
            if (whole < channels)
                write_channels<As, with_silu, copies>(as, from + whole, scale + whole, shift + whole, channels - whole,
                                                      to + whole, pixel);
        }
    }
}

template <class As, bool with_silu>
inline void prepare_pictures(const Prepare& p) {
    const PrepareRows rows(p);
    const As as(p);
    for (int64_t n = 0; n < p.pictures; ++n) {
        if (p.groups > 0) picture_moments(p, n, rows);
        if (n == 0 || p.groups > 0 || p.film) fold(p, n, rows);
        fill_border(p.output, n, as.zero);
        if (p.upsample == 1)
            write_picture<As, with_silu, 1>(p, as, n, rows);
        else
            write_picture<As, with_silu, 2>(p, as, n, rows);
    }
}

template <class As>
inline void prepare_as(const Prepare& p) {
    return p.silu ? prepare_pictures<As, true>(p) : prepare_pictures<As, false>(p);
}

inline void prepare(const Prepare& p) {
    switch (p.output.type) {
        case Type::bf16:
            return prepare_as<AsBF16>(p);
        case Type::u8:
            return prepare_as<AsU8>(p);
        default:
            return prepare_as<AsF32>(p);
    }
}
