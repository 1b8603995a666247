// Includes PYFLOW_BODY once for each level of instruction sets, in a namespace of its own. Headers are included before
// this file, for the reason that each_isa.inl gives.

#define PYFLOW_LEVEL 0
namespace scalar {
#include PYFLOW_BODY
}  // namespace scalar
#undef PYFLOW_LEVEL

#if PYFLOW_HAS_X86_REGIONS

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define PYFLOW_LEVEL 1
namespace avx2 {
#include PYFLOW_BODY
}  // namespace avx2
#undef PYFLOW_LEVEL
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#define PYFLOW_LEVEL 2
namespace avx512 {
#include PYFLOW_BODY
}  // namespace avx512
#undef PYFLOW_LEVEL
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,prefer-vector-width=512")
#define PYFLOW_LEVEL 3
namespace avx512_vnni {
#include PYFLOW_BODY
}  // namespace avx512_vnni
#undef PYFLOW_LEVEL
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma,prefer-vector-width=512")
#define PYFLOW_LEVEL 4
namespace avx512_bf16 {
#include PYFLOW_BODY
}  // namespace avx512_bf16
#undef PYFLOW_LEVEL
#pragma GCC pop_options

#else

// never picked: supported_isas() does not offer them
namespace avx2 = scalar;
namespace avx512 = scalar;
namespace avx512_vnni = scalar;
namespace avx512_bf16 = scalar;

#endif
