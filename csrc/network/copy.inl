// The edges of the network: pictures in and out, and the waves of the times.

inline void load(const Copy& c) {
    const View& view = c.view;
    const int64_t plane = view.height * view.width;
    for (int64_t n = 0; n < c.count; ++n) {
        fill_border(view, n, 0.0f);
        const float* picture = c.pictures + n * view.channels * plane;
        for (int64_t y = 0; y < view.height; ++y) {
            const float* from = picture + y * view.width;
            float* to = view.at<float>(n, y, 0);
            for (int64_t x = 0; x < view.width; ++x, ++from, to += view.pixel)
                for (int64_t channel = 0; channel < view.channels; ++channel) to[channel] = from[channel * plane];
        }
    }
}

inline void store(const Copy& c) {
    const View& view = c.view;
    const int64_t plane = view.height * view.width;
    for (int64_t n = 0; n < c.count; ++n) {
        float* picture = c.pictures + n * view.channels * plane;
        for (int64_t y = 0; y < view.height; ++y) {
            float* to = picture + y * view.width;
            const float* from = view.at<float>(n, y, 0);
            for (int64_t x = 0; x < view.width; ++x, ++to, from += view.pixel)
                for (int64_t channel = 0; channel < view.channels; ++channel) to[channel * plane] = from[channel];
        }
    }
}

// Within 1e-7 for angles of up to 1e4: half turns are taken off in three parts, the first two of which have so few
// digits that their products are exact, and Taylor's series for the rest is cut at the 11th power.
PYFLOW_INLINE V sine(V angle) {
    const V turns = round(angle * set(0.318309886f));
    V x = fnma(turns, set(3.140625f), angle);
    x = fnma(turns, set(9.67502593994140625e-4f), x);
    x = fnma(turns, set(1.509957990978376432e-7f), x);
    const V y = x * x;
    V series = set(-2.50521084e-8f);
    series = fma(series, y, set(2.75573192e-6f));
    series = fma(series, y, set(-1.98412698e-4f));
    series = fma(series, y, set(8.33333333e-3f));
    series = fma(series, y, set(-1.66666667e-1f));
    const V value = fma(series * y, x, x);
    const V odd = fnma(set(2.0f), round(turns * set(0.5f)), turns);  // -1 or 1 after an odd number of half turns
    return value * fnma(odd * odd, set(2.0f), set(1.0f));
}

// The angle is rounded after the product and after the sum, as torch does it.
inline void waves(const Waves& w) {
    const int64_t count = w.output.channels / w.times;
    for (int64_t n = 0; n < w.conditions; ++n)
        for (int64_t i = 0; i < w.times; ++i) {
            const V time = set(i == 0 ? w.s[n] : w.t[n]);
            float* to = w.output.at<float>(n, 0, 0) + i * count;
            for (int64_t k = 0; k < count; k += kLanes) {
                const int64_t lanes = lanes_of(count - k);
                const V angle = time * load_lanes(w.waves + k, lanes) + load_lanes(w.phases + k, lanes);
                store_lanes(to + k, sine(angle), lanes);
            }
        }
}
