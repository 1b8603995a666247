// softmax(q k^T / sqrt(d)) v of each picture and head. Keys and values are packed as weights, so that both products are
// those of gemm.inl.

PYFLOW_INLINE float* token_at(const View& view, int64_t n, int64_t token) {
    if (view.row == view.width * view.pixel) return view.at<float>(n, 0, 0) + token * view.pixel;
    return view.at<float>(n, token / view.width, token % view.width);
}

PYFLOW_INLINE void put(float* to, V value, int64_t lanes) { store_lanes(to, value, lanes); }
PYFLOW_INLINE void put(uint16_t* to, V value, int64_t lanes) { store_bf16(to, value, lanes); }

// What the rows and columns of a product hold: one float32 of a step, or two bfloat16.
template <class P>
struct Numbers;
template <>
struct Numbers<F32> {
    using Number = float;
    static constexpr int64_t a_step = 1;
};
template <>
struct Numbers<BF16> {
    using Number = uint16_t;
    static constexpr int64_t a_step = 2;
};

// The words of a token's steps: its own numbers, or pairs of rounded ones.
PYFLOW_INLINE const Word* words_of(F32, const float* from, int64_t, Word*) {
    return reinterpret_cast<const Word*>(from);
}
PYFLOW_INLINE const Word* words_of(BF16, const float* from, int64_t lanes, Word* made) {
    store_bf16(reinterpret_cast<uint16_t*>(made), load_lanes(from, lanes), kLanes);
    return made;
}

// Token j is column j.
template <class P>
inline void pack_keys(const Attend& a, int64_t n, int64_t channel, const AttendScratch& sizes, Word* to) {
    constexpr int64_t together = Numbers<P>::a_step;
    for (int64_t begin = 0; begin < sizes.tokens; begin += kPanel) {
        const int64_t left = sizes.tokens - begin, width = width_of(left), count = left < width ? left : width;
        for (int64_t j = 0; j < width; ++j) {
            const float* key = j < count ? token_at(a.input, n, begin + j) + channel : nullptr;
            for (int64_t k = 0; k < sizes.features; k += kLanes) {
                const int64_t lanes = lanes_of(sizes.features - k);
                Word made[kLanes] = {};
                const Word* words = key ? words_of(P{}, key + k, lanes, made) : made;
                Word* column = to + k / together * width + j;
                if (lanes == kLanes)
#pragma GCC unroll 16
                    for (int64_t i = 0; i < kLanes / together; ++i) column[i * width] = words[i];
                else
                    for (int64_t i = 0; i < lanes / together; ++i) column[i * width] = words[i];
            }
        }
        to += width * sizes.features / together;
    }
}

// Token k is row k.
inline void pack_values(F32, const Attend& a, int64_t n, int64_t channel, const AttendScratch& sizes, Word* words) {
    auto* to = reinterpret_cast<float*>(words);
    for (int64_t begin = 0; begin < sizes.features; begin += kPanel) {
        const int64_t left = sizes.features - begin, width = width_of(left);
        for (int64_t token = 0; token < sizes.tokens; ++token, to += width) {
            const float* value = token_at(a.input, n, token) + channel + begin;
            for (int64_t j = 0; j < width; j += kLanes) {
                const int64_t lanes = left - j < 0 ? 0 : lanes_of(left - j);
                store(to + j, load_lanes(value + j, lanes));
            }
        }
    }
}
inline void pack_values(BF16, const Attend& a, int64_t n, int64_t channel, const AttendScratch& sizes, Word* words) {
    auto* to = reinterpret_cast<uint16_t*>(words);
    for (int64_t begin = 0; begin < sizes.features; begin += kPanel) {
        const int64_t left = sizes.features - begin, width = width_of(left);
        for (int64_t token = 0; token < sizes.tokens; token += 2, to += 2 * width) {
            const float* even = token_at(a.input, n, token) + channel + begin;
            const float* odd = token_at(a.input, n, token + 1) + channel + begin;
            for (int64_t j = 0; j < width; j += kLanes) {
                const int64_t lanes = left - j < 0 ? 0 : lanes_of(left - j);
                uint16_t pairs[2][kLanes];
                store_bf16(pairs[0], load_lanes(even + j, lanes), kLanes);
                store_bf16(pairs[1], load_lanes(odd + j, lanes), kLanes);
                for (int64_t i = 0; i < kLanes; ++i)
                    for (int64_t k = 0; k < 2; ++k) to[2 * (j + i) + k] = pairs[k][i];
            }
        }
    }
}

template <class Number>
inline void scale_vector(const float* from, V scale, int64_t size, Number* to) {
    for (int64_t i = 0; i < size; i += kLanes) {
        const int64_t lanes = lanes_of(size - i);
        put(to + i, load_lanes(from + i, lanes) * scale, lanes);
    }
}

// The largest of `tokens` scores. Their last vector is filled up with scores that count for nothing.
inline float largest_score(float* scores, int64_t tokens) {
    int64_t size = tokens;
    while (size % kLanes != 0) scores[size++] = -__builtin_inff();
    V most = load(scores);
    for (int64_t i = kLanes; i < size; i += kLanes) most = max(most, load(scores + i));
    return largest(most);
}

// e^(score - top) in the place of the scores, and their sum. A NaN among them makes it one. The rounding of top *
// log2(e) is a factor that all of a row have in common, which the division by their sum takes out.
template <class Number>
inline float exponentials(float* scores, int64_t tokens, float top) {
    auto* to = reinterpret_cast<Number*>(scores);
    const V log2_e = set(1.44269504f), shift = set(top) * log2_e, least = set(-126.0f);
    V total = set(0.0f);
    for (int64_t i = 0; i < tokens; i += kLanes) {
        const V value = power_of_two(max(least, fma(load(scores + i), log2_e, set(0.0f) - shift)));
        total = total + value;
        put(to + i, value, kLanes);
    }
    return sum(total);
}

template <class P>
inline void attend_head(const Attend& a, int64_t n, int64_t head, const AttendScratch& sizes) {
    using Number = typename Numbers<P>::Number;
    constexpr int64_t a_step = Numbers<P>::a_step;
    const int64_t channels = a.output.channels, features = sizes.features, channel = head * features;
    auto* keys = static_cast<float*>(a.scratch);
    float *values = keys + sizes.keys(), *scores = values + sizes.values() + sizes.queries();
    auto* queries = reinterpret_cast<Number*>(values + sizes.values());
    float *results = scores + sizes.scores(), *sums = results + sizes.results();
    pack_keys<P>(a, n, channels + channel, sizes, reinterpret_cast<Word*>(keys));
    pack_values(P{}, a, n, 2 * channels + channel, sizes, reinterpret_cast<Word*>(values));

    constexpr int64_t no_offset = 0;
    Product score{}, mix{};
    score.taps = mix.taps = &no_offset;
    score.tap_count = mix.tap_count = 1;
    score.steps = features / a_step;
    score.a = reinterpret_cast<const uint8_t*>(queries);
    score.a_row = score.steps * kStep;
    score.weights = reinterpret_cast<const uint8_t*>(keys);
    score.panel_bytes = score.steps * kPanel * kStep;
    score.out = scores;
    score.out_row = sizes.score_row();
    score.columns = sizes.tokens;
    mix.steps = sizes.tokens / a_step;
    mix.a = reinterpret_cast<const uint8_t*>(scores);
    mix.a_row = sizes.score_row() * static_cast<int64_t>(sizeof(float));
    mix.weights = reinterpret_cast<const uint8_t*>(values);
    mix.panel_bytes = mix.steps * kPanel * kStep;
    mix.out = results;
    mix.out_row = sizes.result_row();
    mix.columns = features;

    const V scale = set(1.0f / __builtin_sqrtf(static_cast<float>(features)));
    for (int64_t first = 0; first < sizes.tokens; first += sizes.block) {
        const int64_t count = sizes.tokens - first < sizes.block ? sizes.tokens - first : sizes.block;
        for (int64_t row = 0; row < count; ++row)
            scale_vector(token_at(a.input, n, first + row) + channel, scale, features, queries + row * features);
        multiply<P>(score, count);
        // In two loops: within a row each step waits for the one before.
        for (int64_t row = 0; row < count; ++row)
            sums[row] = largest_score(scores + row * sizes.score_row(), sizes.tokens);
        for (int64_t row = 0; row < count; ++row)
            sums[row] = exponentials<Number>(scores + row * sizes.score_row(), sizes.tokens, sums[row]);
        multiply<P>(mix, count);
        for (int64_t row = 0; row < count; ++row)
            scale_vector(results + row * sizes.result_row(), set(1.0f / sums[row]), features,
                         token_at(a.output, n, first + row) + channel);
    }
}

template <class P>
inline void attend_pictures(const Attend& a) {
    const AttendScratch sizes(a.input.height * a.input.width, a.output.channels / a.heads);
    for (int64_t n = 0; n < a.pictures; ++n)
        for (int64_t head = 0; head < a.heads; ++head) attend_head<P>(a, n, head, sizes);
}

inline void attend(const Attend& a) {
#if PYFLOW_LEVEL == 4
    return a.products == Type::bf16 ? attend_pictures<BF16>(a) : avx512::attend(a);
#else
    return a.products == Type::bf16 ? attend_pictures<BF16>(a) : attend_pictures<F32>(a);
#endif
}
