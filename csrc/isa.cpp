#include "isa.hpp"

#include <cstdlib>

#include "errors.hpp"

namespace pyflow {

namespace {

std::string join(const std::vector<Isa>& isas) {
    std::string joined;
    for (Isa isa : isas) joined += (joined.empty() ? "" : ", ") + std::string(name_of(isa));
    return joined;
}

Isa from_environment() {
    const char* forced = std::getenv("PYFLOW_ISA");
    return forced ? isa_named(forced, "PYFLOW_ISA") : supported_isas().back();
}

}  // namespace

const char* name_of(Isa isa) {
    constexpr const char* names[] = {"scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16"};
    return names[static_cast<int>(isa)];
}

std::vector<Isa> supported_isas() {
    std::vector<Isa> isas{Isa::scalar};
#if PYFLOW_HAS_X86_REGIONS
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
        return isas;
    isas.push_back(Isa::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        isas.push_back(Isa::avx512);
        if (__builtin_cpu_supports("avx512vnni")) {
            isas.push_back(Isa::avx512_vnni);
            if (__builtin_cpu_supports("avx512bf16")) isas.push_back(Isa::avx512_bf16);
        }
    }
#endif
    return isas;
}

Isa isa_named(const std::string& name, const char* source) {
    const std::string came = std::string(source) + " is '" + name + "'; ";
    for (Isa isa : supported_isas())
        if (name == name_of(isa)) return isa;
    for (Isa isa : {Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16})
        if (name == name_of(isa))
            throw BackendUnavailable(came + "this build on this CPU runs " + join(supported_isas()));
    throw InvalidInput(came +
                       "expected one of scalar, avx2, avx512, avx512_vnni, avx512_bf16; this build on this CPU runs " +
                       join(supported_isas()));
}

Isa chosen_isa() {
    static const Isa isa = from_environment();
    return isa;
}

}  // namespace pyflow
