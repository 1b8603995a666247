// Which instruction set runs the loops: the best that this CPU has, or the one that PYFLOW_ISA names.
#pragma once

#include <string>
#include <vector>

// Clang knows no `#pragma GCC target`; there, and on other CPUs, only the scalar bodies are compiled.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PYFLOW_HAS_X86_REGIONS 1
#else
#define PYFLOW_HAS_X86_REGIONS 0
#endif

namespace pyflow {

// scalar is the compiler's baseline: on x86-64 that still means SSE2.
// avx2 means FMA too; avx512_vnni has int8 products, avx512_bf16 those and bfloat16 ones. Only networks tell the last
// three apart.
enum class Isa { scalar, avx2, avx512, avx512_vnni, avx512_bf16 };

const char* name_of(Isa isa);

// Worst first.
std::vector<Isa> supported_isas();

// Throws InvalidInput for a name that does not exist, BackendUnavailable for one that this CPU cannot run; `source`
// says where the name came from.
Isa isa_named(const std::string& name, const char* source);

// Read from PYFLOW_ISA at the first use, so that a bad value is an error of that use and not of the import.
Isa chosen_isa();

// The one of three builds of a function that runs on `isa`.
template <class Function>
Function* pick(Isa isa, Function* scalar, Function* avx2, Function* avx512) {
    return isa >= Isa::avx512 ? avx512 : isa == Isa::avx2 ? avx2 : scalar;
}

}  // namespace pyflow
