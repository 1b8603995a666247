// Eight floats in a register.

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
PYFLOW_INLINE V load_bf16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
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
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
    uint32_t kept[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(kept), _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan));
    for (int64_t i = 0; i < n; ++i) p[i] = static_cast<uint16_t>(kept[i]);
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
    static PYFLOW_INLINE Row row(const Word* p) { return {_mm256_set1_ps(*reinterpret_cast<const float*>(p))}; }
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
    static PYFLOW_INLINE Row row(const Word* p) {
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
    static PYFLOW_INLINE Row row(const Word* p) {
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
