// softmax(q k^T / sqrt(d)) v of each picture and head. Keys and values are packed as weights, so that both products are
// those of gemm.inl.

PYFLOW_INLINE float* token_at(const View& view, int64_t n, int64_t token) {
    if (view.row == view.width * view.pixel) return view.at<float>(n, 0, 0) + token * view.pixel;
    return view.at<float>(n, token / view.width, token % view.width);
}

// Token j is column j.
inline void pack_keys(const Attend& a, int64_t n, int64_t channel, const AttendScratch& sizes, float* to) {
    for (int64_t begin = 0; begin < sizes.tokens; begin += kPanel) {
        const int64_t left = sizes.tokens - begin, width = width_of(left), count = left < width ? left : width;
        for (int64_t j = 0; j < count; ++j) {
            const float* key = token_at(a.input, n, begin + j) + channel;
#pragma GCC unroll 8
            for (int64_t k = 0; k < sizes.features; ++k) to[k * width + j] = key[k];
        }
        for (int64_t j = count; j < width; ++j)
            for (int64_t k = 0; k < sizes.features; ++k) to[k * width + j] = 0.0f;
        to += width * sizes.features;
    }
}

// Token k is row k.
inline void pack_values(const Attend& a, int64_t n, int64_t channel, const AttendScratch& sizes, float* to) {
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

inline void scale_vector(const float* from, V scale, int64_t size, float* to) {
    for (int64_t i = 0; i < size; i += kLanes) {
        const int64_t lanes = lanes_of(size - i);
        store_lanes(to + i, load_lanes(from + i, lanes) * scale, lanes);
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

// In place e^(score - top), and their sum. A NaN among them makes it one. The rounding of top * log2(e) is a factor that
// all of a row have in common, which the division by their sum takes out.
inline float exponentials(float* scores, int64_t tokens, float top) {
    const V log2_e = set(1.44269504f), shift = set(top) * log2_e, least = set(-126.0f);
    V total = set(0.0f);
    for (int64_t i = 0; i < tokens; i += kLanes) {
        const V value = power_of_two(max(least, fma(load(scores + i), log2_e, set(0.0f) - shift)));
        total = total + value;
        store(scores + i, value);
    }
    return sum(total);
}

inline void attend_head(const Attend& a, int64_t n, int64_t head, const AttendScratch& sizes) {
    const int64_t channels = a.output.channels, features = sizes.features, channel = head * features;
    auto* keys = static_cast<float*>(a.scratch);
    float *values = keys + sizes.keys(), *queries = values + sizes.values(), *scores = queries + sizes.queries();
    float *results = scores + sizes.scores(), *sums = results + sizes.results();
    pack_keys(a, n, channels + channel, sizes, keys);
    pack_values(a, n, 2 * channels + channel, sizes, values);

    constexpr int64_t no_offset = 0;
    Product score{}, mix{};
    score.taps = mix.taps = &no_offset;
    score.tap_count = mix.tap_count = 1;
    score.a = reinterpret_cast<const uint8_t*>(queries);
    score.a_row = features * kStep;
    score.steps = features;
    score.weights = reinterpret_cast<const uint8_t*>(keys);
    score.panel_bytes = features * kPanel * kStep;
    score.out = scores;
    score.out_row = sizes.score_row();
    score.columns = sizes.tokens;
    mix.a = reinterpret_cast<const uint8_t*>(scores);
    mix.a_row = sizes.score_row() * kStep;
    mix.steps = sizes.tokens;
    mix.weights = reinterpret_cast<const uint8_t*>(values);
    mix.panel_bytes = sizes.tokens * kPanel * kStep;
    mix.out = results;
    mix.out_row = sizes.result_row();
    mix.columns = features;

    const V scale = set(1.0f / __builtin_sqrtf(static_cast<float>(features)));
    for (int64_t first = 0; first < sizes.tokens; first += sizes.block) {
        const int64_t count = sizes.tokens - first < sizes.block ? sizes.tokens - first : sizes.block;
        for (int64_t row = 0; row < count; ++row)
            scale_vector(token_at(a.input, n, first + row) + channel, scale, features, queries + row * features);
        multiply<F32>(score, count);
        // In two loops: within a row each step waits for the one before.
        for (int64_t row = 0; row < count; ++row)
            sums[row] = largest_score(scores + row * sizes.score_row(), sizes.tokens);
        for (int64_t row = 0; row < count; ++row)
            sums[row] = exponentials(scores + row * sizes.score_row(), sizes.tokens, sums[row]);
        multiply<F32>(mix, count);
        for (int64_t row = 0; row < count; ++row)
            scale_vector(results + row * sizes.result_row(), set(1.0f / sums[row]), features,
                         token_at(a.output, n, first + row) + channel);
    }
}

inline void attend(const Attend& a) {
    const AttendScratch sizes(a.input.height * a.input.width, a.output.channels / a.heads);
    for (int64_t n = 0; n < a.pictures; ++n)
        for (int64_t head = 0; head < a.heads; ++head) attend_head(a, n, head, sizes);
}
