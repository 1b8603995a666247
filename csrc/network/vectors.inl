// A vector of floats at PYFLOW_LEVEL, and the three products. Everything else is written once over these.
//
// A product step multiplies 4 bytes of a row with 4 bytes of each column: one float, two bfloat16, or four int8.

#define PYFLOW_INLINE inline __attribute__((always_inline))

// The 4 bytes of a row, whatever numbers were written there.
typedef uint32_t __attribute__((may_alias)) Word;

#if PYFLOW_LEVEL >= 2
#include "vectors_avx512.inl"
#elif PYFLOW_LEVEL == 1
#include "vectors_avx2.inl"
#else
#include "vectors_scalar.inl"
#endif

// A vector of `lanes` channels, of which only the last one of a pixel has fewer than kLanes.
PYFLOW_INLINE V load_lanes(const float* from, int64_t lanes) {
    return lanes == kLanes ? load(from) : load_some(from, lanes);
}
PYFLOW_INLINE void store_lanes(float* to, V value, int64_t lanes) {
    if (lanes == kLanes)
        store(to, value);
    else
        store_some(to, value, lanes);
}
PYFLOW_INLINE int64_t lanes_of(int64_t channels_left) { return channels_left < kLanes ? channels_left : kLanes; }

// 2^y for |y| <= 126, within 2 ulp; a NaN stays one.
PYFLOW_INLINE V power_of_two(V y) {
    const V whole = round(y), f = y - whole;
    V p = set(1.32647273e-3f);
    p = fma(p, f, set(9.67151279e-3f));
    p = fma(p, f, set(5.55073374e-2f));
    p = fma(p, f, set(2.40222421e-1f));
    p = fma(p, f, set(6.93146978e-1f));
    p = fma(p, f, set(1.0f));
    return scale_by_power(p, whole);
}

// a / (1 + 2^y) with y = -a * log2(e), within 1.4e-7 of the larger of itself and 1/2; at -infinity it is its limit, 0.
// Division takes 0.42 cycles an element (Zen 5, AVX-512), an estimate of 1/(1+2^y) with a Newton step 0.58. What y lost
// when it was rounded shows only where the result is next to nothing. Of two operands, max and min give the second
// where they cannot tell: a NaN.
PYFLOW_INLINE V silu(V a) {
    const V b = max(set(-87.0f), a);
    return b / (set(1.0f) + power_of_two(min(set(87.0f), b) * set(-1.44269504f)));
}
