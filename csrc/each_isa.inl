// Includes PYFLOW_BODY once for each instruction set, in namespaces scalar, avx2 and avx512. Headers are included
// before this file: a standard function compiled inside a target region could be the one that the linker keeps for
// everybody, and fail on an older CPU.

namespace scalar {
#include PYFLOW_BODY
}  // namespace scalar

#if PYFLOW_HAS_X86_REGIONS

#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
#include PYFLOW_BODY
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace avx512 {
#include PYFLOW_BODY
}  // namespace avx512
#pragma GCC pop_options

#else

// never picked: supported_isas() does not offer them
namespace avx2 = scalar;
namespace avx512 = scalar;

#endif
