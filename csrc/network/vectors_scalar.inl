// Sixteen floats in plain C++: what the others are compared with.

constexpr int kLanes = 16;
struct V {
    float v[kLanes];
};
struct I {
    int32_t v[kLanes];
};
template <class F>
PYFLOW_INLINE V each(F f) {
    V made;
    for (int i = 0; i < kLanes; ++i) made.v[i] = f(i);
    return made;
}
PYFLOW_INLINE V load_some(const float* p, int64_t n) {
    return each([&](int i) { return i < n ? p[i] : 0.0f; });
}
PYFLOW_INLINE void store_some(float* p, V a, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = a.v[i];
}
PYFLOW_INLINE V load(const float* p) { return load_some(p, kLanes); }
PYFLOW_INLINE void store(float* p, V a) { store_some(p, a, kLanes); }
PYFLOW_INLINE V set(float a) {
    return each([&](int) { return a; });
}
PYFLOW_INLINE V operator+(V a, V b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
}
PYFLOW_INLINE V operator-(V a, V b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
}
PYFLOW_INLINE V operator*(V a, V b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
}
PYFLOW_INLINE V operator/(V a, V b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
}
PYFLOW_INLINE V fma(V a, V b, V c) {
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
PYFLOW_INLINE V fnma(V a, V b, V c) {
    return each([&](int i) { return c.v[i] - a.v[i] * b.v[i]; });
}
PYFLOW_INLINE V max(V a, V b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
PYFLOW_INLINE V min(V a, V b) {
    return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
PYFLOW_INLINE V round(V a) {
    return each([&](int i) { return std::nearbyintf(a.v[i]); });
}
PYFLOW_INLINE V scale_by_power(V a, V power) {
    return each([&](int i) { return std::ldexp(a.v[i], static_cast<int>(power.v[i])); });
}
PYFLOW_INLINE float sum(V a) {
    float total = 0.0f;
    for (float lane : a.v) total += lane;
    return total;
}
PYFLOW_INLINE float largest(V a) {
    float most = a.v[0];
    for (float lane : a.v) most = lane > most ? lane : most;
    return most;
}
PYFLOW_INLINE void store_u8(uint8_t* p, V a, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(std::nearbyintf(a.v[i]));
}
PYFLOW_INLINE uint16_t bf16_of(float a) {
    uint32_t bits;
    std::memcpy(&bits, &a, 4);
    return a == a ? static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : 0x7fc0;
}
PYFLOW_INLINE float float_of(uint32_t bits) {
    float a;
    std::memcpy(&a, &bits, 4);
    return a;
}
PYFLOW_INLINE V load_bf16(const uint16_t* p) {
    return each([&](int i) { return float_of(uint32_t{p[i]} << 16); });
}
PYFLOW_INLINE void store_bf16(uint16_t* p, V a, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = bf16_of(a.v[i]);
}

struct F32 {
    using Sum = V;
    using Row = uint32_t;
    static PYFLOW_INLINE Sum zero() { return set(0.0f); }
    static PYFLOW_INLINE V value(Sum a) { return a; }
    static PYFLOW_INLINE Row row(const Word* p) { return *p; }
    static PYFLOW_INLINE Sum mac(Row a, const void* b, Sum c) {
        return fma(set(float_of(a)), load(static_cast<const float*>(b)), c);
    }
};

struct BF16 {
    using Sum = V;
    using Row = uint32_t;
    static PYFLOW_INLINE Sum zero() { return set(0.0f); }
    static PYFLOW_INLINE V value(Sum a) { return a; }
    static PYFLOW_INLINE Row row(const Word* p) { return *p; }
    static PYFLOW_INLINE Sum mac(Row a, const void* b, Sum c) {
        const auto* pairs = static_cast<const Word*>(b);
        return each([&](int i) {
            const float even = float_of(a << 16) * float_of(pairs[i] << 16) + c.v[i];
            return float_of(a & 0xffff0000u) * float_of(pairs[i] & 0xffff0000u) + even;
        });
    }
};

struct U8S8 {
    using Sum = I;
    using Row = const uint8_t*;
    static PYFLOW_INLINE Sum zero() { return {}; }
    static PYFLOW_INLINE V value(Sum a) {
        return each([&](int i) { return static_cast<float>(a.v[i]); });
    }
    static PYFLOW_INLINE Row row(const Word* p) { return reinterpret_cast<const uint8_t*>(p); }
    static PYFLOW_INLINE Sum mac(Row a, const void* b, Sum c) {
        const auto* fours = static_cast<const int8_t*>(b);
        for (int i = 0; i < kLanes; ++i)
            for (int k = 0; k < 4; ++k) c.v[i] += a[k] * fours[4 * i + k];
        return c;
    }
};
