// A vector of floats at PYFLOW_LEVEL, and the three products. Everything else is written once over these.
//
// A product step multiplies 4 bytes of a row with 4 bytes of each column: one float, two bfloat16, or four int8.

#define PYFLOW_INLINE inline __attribute__((always_inline))

#if PYFLOW_LEVEL >= 2

constexpr int kLanes = 16;
struct V {
    __m512 v;
};
PYFLOW_INLINE V load(const float* p) { return {_mm512_loadu_ps(p)}; }
PYFLOW_INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a.v); }
PYFLOW_INLINE __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
PYFLOW_INLINE V load_some(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
PYFLOW_INLINE void store_some(float* p, V a, int64_t n) { _mm512_mask_storeu_ps(p, first(n), a.v); }
PYFLOW_INLINE V set(float a) { return {_mm512_set1_ps(a)}; }
PYFLOW_INLINE V operator+(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
PYFLOW_INLINE V operator-(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
PYFLOW_INLINE V operator*(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
PYFLOW_INLINE V operator/(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
PYFLOW_INLINE V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }    // a*b + c
PYFLOW_INLINE V fnma(V a, V b, V c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a*b
PYFLOW_INLINE V max(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
PYFLOW_INLINE V min(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
PYFLOW_INLINE V round(V a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
PYFLOW_INLINE V scale_by_power(V a, V power) { return {_mm512_scalef_ps(a.v, power.v)}; }  // a * 2^power, power whole
PYFLOW_INLINE V from_int(const int32_t* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }
PYFLOW_INLINE float sum(V a) { return _mm512_reduce_add_ps(a.v); }
PYFLOW_INLINE float largest(V a) { return _mm512_reduce_max_ps(a.v); }
// Rounded to nearest, ties to even; whole values of 0 to 255.
PYFLOW_INLINE void store_u8(uint8_t* p, V a, int64_t n) {
    const __m128i bytes = _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(a.v));
    _mm_mask_storeu_epi8(p, first(n), bytes);
}
#if PYFLOW_LEVEL >= 4
PYFLOW_INLINE void store_bf16(uint16_t* p, V a, int64_t n) {
    const __m256bh rounded = _mm512_cvtneps_pbh(a.v);
    _mm256_mask_storeu_epi16(p, first(n), (__m256i)rounded);
}
#else
PYFLOW_INLINE void store_bf16(uint16_t* p, V a, int64_t n) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtepi32_epi16(rounded));
}
#endif

struct I {
    __m512i v;
};
PYFLOW_INLINE V to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }

struct F32 {
    using Sum = V;
    static PYFLOW_INLINE Sum zero() { return {_mm512_setzero_ps()}; }
    static PYFLOW_INLINE V value(Sum a) { return a; }
    struct Row {
        __m512 v;
    };
    static PYFLOW_INLINE Row row(const uint32_t* p) { return {_mm512_set1_ps(*reinterpret_cast<const float*>(p))}; }
    static PYFLOW_INLINE Sum mac(Row a, const void* b, Sum c) {
        return {_mm512_fmadd_ps(a.v, _mm512_loadu_ps(b), c.v)};
    }
};

struct BF16 {
    using Sum = V;
    static PYFLOW_INLINE Sum zero() { return {_mm512_setzero_ps()}; }
    static PYFLOW_INLINE V value(Sum a) { return a; }
#if PYFLOW_LEVEL >= 4
    struct Row {
        __m512i v;
    };
    static PYFLOW_INLINE Row row(const uint32_t* p) { return {_mm512_set1_epi32(static_cast<int>(*p))}; }
    static PYFLOW_INLINE Sum mac(Row a, const void* b, Sum c) {
        return {_mm512_dpbf16_ps(c.v, (__m512bh)a.v, (__m512bh)_mm512_loadu_si512(b))};
    }
#else
    struct Row {
        __m512 even, odd;
    };
    static PYFLOW_INLINE Row row(const uint32_t* p) {
        const __m512i pair = _mm512_set1_epi32(static_cast<int>(*p));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)),
                _mm512_castsi512_ps(_mm512_and_epi32(pair, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
    }
    static PYFLOW_INLINE Sum mac(Row a, const void* b, Sum c) {
        const __m512i pairs = _mm512_loadu_si512(b);
        const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
        const __m512 odd =
            _mm512_castsi512_ps(_mm512_and_epi32(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
        return {_mm512_fmadd_ps(a.odd, odd, _mm512_fmadd_ps(a.even, even, c.v))};
    }
#endif
};

struct U8S8 {
    using Sum = I;
    static PYFLOW_INLINE Sum zero() { return {_mm512_setzero_si512()}; }
    static PYFLOW_INLINE V value(Sum a) { return to_float(a); }
#if PYFLOW_LEVEL >= 3
    struct Row {
        __m512i v;
    };
    static PYFLOW_INLINE Row row(const uint32_t* p) { return {_mm512_set1_epi32(static_cast<int>(*p))}; }
    static PYFLOW_INLINE Sum mac(Row a, const void* b, Sum c) {
        return {_mm512_dpbusd_epi32(c.v, a.v, _mm512_loadu_si512(b))};
    }
#else
    struct Row {
        __m512i even, odd;
    };
    static PYFLOW_INLINE Row row(const uint32_t* p) {
        const __m512i four = _mm512_set1_epi32(static_cast<int>(*p));
        return {_mm512_and_si512(four, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(four, 8)};
    }
    static PYFLOW_INLINE Sum mac(Row a, const void* b, Sum c) {
        const __m512i four = _mm512_loadu_si512(b);
        const __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(four, 8), 8), odd = _mm512_srai_epi16(four, 8);
        const __m512i pairs = _mm512_add_epi32(_mm512_madd_epi16(a.even, even), _mm512_madd_epi16(a.odd, odd));
        return {_mm512_add_epi32(c.v, pairs)};
    }
#endif
};

#elif PYFLOW_LEVEL == 1

constexpr int kLanes = 8;
struct V {
    __m256 v;
};
PYFLOW_INLINE __m256i first(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
PYFLOW_INLINE V load(const float* p) { return {_mm256_loadu_ps(p)}; }
PYFLOW_INLINE void store(float* p, V a) { _mm256_storeu_ps(p, a.v); }
PYFLOW_INLINE V load_some(const float* p, int64_t n) { return {_mm256_maskload_ps(p, first(n))}; }
PYFLOW_INLINE void store_some(float* p, V a, int64_t n) { _mm256_maskstore_ps(p, first(n), a.v); }
PYFLOW_INLINE V set(float a) { return {_mm256_set1_ps(a)}; }
PYFLOW_INLINE V operator+(V a, V b) { return {_mm256_add_ps(a.v, b.v)}; }
PYFLOW_INLINE V operator-(V a, V b) { return {_mm256_sub_ps(a.v, b.v)}; }
PYFLOW_INLINE V operator*(V a, V b) { return {_mm256_mul_ps(a.v, b.v)}; }
PYFLOW_INLINE V operator/(V a, V b) { return {_mm256_div_ps(a.v, b.v)}; }
PYFLOW_INLINE V fma(V a, V b, V c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
PYFLOW_INLINE V fnma(V a, V b, V c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
PYFLOW_INLINE V max(V a, V b) { return {_mm256_max_ps(a.v, b.v)}; }
PYFLOW_INLINE V min(V a, V b) { return {_mm256_min_ps(a.v, b.v)}; }
PYFLOW_INLINE V round(V a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
PYFLOW_INLINE V scale_by_power(V a, V power) {
    const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(power.v), _mm256_set1_epi32(127)), 23);
    return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(bits))};
}
PYFLOW_INLINE float sum(V a) {
    float lanes[8], total = 0.0f;
    _mm256_storeu_ps(lanes, a.v);
    for (float lane : lanes) total += lane;
    return total;
}
PYFLOW_INLINE float largest(V a) {
    float lanes[8];
    _mm256_storeu_ps(lanes, a.v);
    float most = lanes[0];
    for (float lane : lanes) most = lane > most ? lane : most;
    return most;
}
PYFLOW_INLINE void store_u8(uint8_t* p, V a, int64_t n) {
    int32_t whole[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(whole), _mm256_cvtps_epi32(a.v));
    for (int64_t i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(whole[i]);
}
PYFLOW_INLINE void store_bf16(uint16_t* p, V a, int64_t n) {
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    uint32_t rounded[8];
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(rounded),
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16));
    for (int64_t i = 0; i < n; ++i) p[i] = static_cast<uint16_t>(rounded[i]);
}

struct I {
    __m256i v;
};

struct F32 {
    using Sum = V;
    static PYFLOW_INLINE Sum zero() { return {_mm256_setzero_ps()}; }
    static PYFLOW_INLINE V value(Sum a) { return a; }
    struct Row {
        __m256 v;
    };
    static PYFLOW_INLINE Row row(const uint32_t* p) { return {_mm256_set1_ps(*reinterpret_cast<const float*>(p))}; }
    static PYFLOW_INLINE Sum mac(Row a, const void* b, Sum c) {
        return {_mm256_fmadd_ps(a.v, _mm256_loadu_ps(static_cast<const float*>(b)), c.v)};
    }
};

struct BF16 {
    using Sum = V;
    static PYFLOW_INLINE Sum zero() { return {_mm256_setzero_ps()}; }
    static PYFLOW_INLINE V value(Sum a) { return a; }
    struct Row {
        __m256 even, odd;
    };
    static PYFLOW_INLINE Row row(const uint32_t* p) {
        const __m256i pair = _mm256_set1_epi32(static_cast<int>(*p));
        return {_mm256_castsi256_ps(_mm256_slli_epi32(pair, 16)),
                _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
    }
    static PYFLOW_INLINE Sum mac(Row a, const void* b, Sum c) {
        const __m256i pairs = _mm256_loadu_si256(static_cast<const __m256i*>(b));
        const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
        const __m256 odd =
            _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
        return {_mm256_fmadd_ps(a.odd, odd, _mm256_fmadd_ps(a.even, even, c.v))};
    }
};

struct U8S8 {
    using Sum = I;
    static PYFLOW_INLINE Sum zero() { return {_mm256_setzero_si256()}; }
    static PYFLOW_INLINE V value(Sum a) { return {_mm256_cvtepi32_ps(a.v)}; }
    struct Row {
        __m256i even, odd;
    };
    static PYFLOW_INLINE Row row(const uint32_t* p) {
        const __m256i four = _mm256_set1_epi32(static_cast<int>(*p));
        return {_mm256_and_si256(four, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(four, 8)};
    }
    static PYFLOW_INLINE Sum mac(Row a, const void* b, Sum c) {
        const __m256i four = _mm256_loadu_si256(static_cast<const __m256i*>(b));
        const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8), odd = _mm256_srai_epi16(four, 8);
        const __m256i pairs = _mm256_add_epi32(_mm256_madd_epi16(a.even, even), _mm256_madd_epi16(a.odd, odd));
        return {_mm256_add_epi32(c.v, pairs)};
    }
};

#else

// Plain C++: what the others are compared with.
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
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
PYFLOW_INLINE float float_of(uint32_t bits) {
    float a;
    std::memcpy(&a, &bits, 4);
    return a;
}
PYFLOW_INLINE void store_bf16(uint16_t* p, V a, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = bf16_of(a.v[i]);
}

struct F32 {
    using Sum = V;
    using Row = uint32_t;
    static PYFLOW_INLINE Sum zero() { return set(0.0f); }
    static PYFLOW_INLINE V value(Sum a) { return a; }
    static PYFLOW_INLINE Row row(const uint32_t* p) { return *p; }
    static PYFLOW_INLINE Sum mac(Row a, const void* b, Sum c) {
        return fma(set(float_of(a)), load(static_cast<const float*>(b)), c);
    }
};

struct BF16 {
    using Sum = V;
    using Row = uint32_t;
    static PYFLOW_INLINE Sum zero() { return set(0.0f); }
    static PYFLOW_INLINE V value(Sum a) { return a; }
    static PYFLOW_INLINE Row row(const uint32_t* p) { return *p; }
    static PYFLOW_INLINE Sum mac(Row a, const void* b, Sum c) {
        const auto* pairs = static_cast<const uint32_t*>(b);
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
    static PYFLOW_INLINE Row row(const uint32_t* p) { return reinterpret_cast<const uint8_t*>(p); }
    static PYFLOW_INLINE Sum mac(Row a, const void* b, Sum c) {
        const auto* fours = static_cast<const int8_t*>(b);
        for (int i = 0; i < kLanes; ++i)
            for (int k = 0; k < 4; ++k) c.v[i] += a[k] * fours[4 * i + k];
        return c;
    }
};

#endif

// e^a, within 2 ulp. Below -87 it is 0 or nearly so, above 87 large but finite. A NaN stays one: of two operands, max
// and min give the second where they cannot tell.
PYFLOW_INLINE V exponential(V a) {
    const V b = min(set(87.33f), max(set(-87.33f), a));
    const V whole = round(b * set(1.44269504f));
    const V f = fnma(whole, set(1.42860677e-6f), fnma(whole, set(0.693145752f), b));  // |f| <= ln(2)/2
    V p = set(1.9875691e-4f);
    p = fma(p, f, set(1.3981999e-3f));
    p = fma(p, f, set(8.3334519e-3f));
    p = fma(p, f, set(4.1665796e-2f));
    p = fma(p, f, set(1.6666666e-1f));
    p = fma(p, f, set(0.5f));
    p = fma(p, f * f, f + set(1.0f));
    return scale_by_power(p, whole);
}

// a / (1 + 2^y) with y = -a * log2(e), within 1.4e-7 of the larger of itself and 1/2; at -infinity it is its limit, 0.
// Division takes 0.42 cycles an element (Zen 5, AVX-512), an estimate of 1/(1+2^y) with a Newton step 0.58. What y lost
// when it was rounded shows only where the result is next to nothing, so that one multiplication reduces it.
PYFLOW_INLINE V silu(V a) {
    const V b = max(set(-87.0f), a);
    const V y = min(set(87.0f), b) * set(-1.44269504f);
    const V whole = round(y), f = y - whole;
    V p = set(1.32647273e-3f);
    p = fma(p, f, set(9.67151279e-3f));
    p = fma(p, f, set(5.55073374e-2f));
    p = fma(p, f, set(2.40222421e-1f));
    p = fma(p, f, set(6.93146978e-1f));
    p = fma(p, f, set(1.0f));
    return b / (set(1.0f) + scale_by_power(p, whole));
}
