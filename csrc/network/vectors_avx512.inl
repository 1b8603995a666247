// Sixteen floats in a register.

constexpr int kLanes = 16;
struct V {
    __m512 v;
};
PYFLOW_INLINE V load(const float* p) { return {_mm512_loadu_ps(p)}; }
PYFLOW_INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a.v); }
PYFLOW_INLINE __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
PYFLOW_INLINE V load_some(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
PYFLOW_INLINE void store_some(float* p, V a, int64_t n) { _mm512_mask_storeu_ps(p, first(n), a.v); }
PYFLOW_INLINE V load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
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
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);  // rounded up, the largest of them would be 0
    const __m512i kept = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
    _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtepi32_epi16(kept));
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
    static PYFLOW_INLINE Row row(const Word* p) { return {_mm512_set1_ps(*reinterpret_cast<const float*>(p))}; }
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
    static PYFLOW_INLINE Row row(const Word* p) { return {_mm512_set1_epi32(static_cast<int>(*p))}; }
    static PYFLOW_INLINE Sum mac(Row a, const void* b, Sum c) {
        return {_mm512_dpbf16_ps(c.v, (__m512bh)a.v, (__m512bh)_mm512_loadu_si512(b))};
    }
#else
    struct Row {
        __m512 even, odd;
    };
    static PYFLOW_INLINE Row row(const Word* p) {
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
    static PYFLOW_INLINE Row row(const Word* p) { return {_mm512_set1_epi32(static_cast<int>(*p))}; }
    static PYFLOW_INLINE Sum mac(Row a, const void* b, Sum c) {
        return {_mm512_dpbusd_epi32(c.v, a.v, _mm512_loadu_si512(b))};
    }
#else
    struct Row {
        __m512i even, odd;
    };
    static PYFLOW_INLINE Row row(const Word* p) {
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
