// All kernels of one level, included by each_level.inl. A level leaves to the one below what it would do no better.

// clang-format off: each reads the ones before it.
#include "vectors.inl"
#include "gemm.inl"
#include "convolve.inl"
#include "winograd.inl"
#if PYFLOW_LEVEL != 3
#include "prepare.inl"
#include "attend.inl"
#endif
#if PYFLOW_LEVEL <= 2
#include "copy.inl"
#endif
// clang-format on

#if PYFLOW_LEVEL == 3
const Kernels table = {convolve, avx512::prepare, avx512::attend, avx512::waves, avx512::load, avx512::store};
#elif PYFLOW_LEVEL == 4
const Kernels table = {convolve, prepare, attend, avx512::waves, avx512::load, avx512::store};
#else
const Kernels table = {convolve, prepare, attend, waves, load, store};
#endif
