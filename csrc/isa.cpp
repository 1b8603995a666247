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

const char* name_of(Isa isa) { return pick<const char>(isa, "scalar", "avx2", "avx512"); }

std::vector<Isa> supported_isas() {
    std::vector<Isa> isas{Isa::scalar};
#if PYFLOW_HAS_X86_REGIONS
    if (__builtin_cpu_supports("avx2")) isas.push_back(Isa::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        isas.push_back(Isa::avx512);
#endif
    return isas;
}

Isa isa_named(const std::string& name, const char* source) {
    const std::string came = std::string(source) + " is '" + name + "'; ";
    for (Isa isa : supported_isas())
        if (name == name_of(isa)) return isa;
    if (name == name_of(Isa::avx2) || name == name_of(Isa::avx512))
        throw BackendUnavailable(came + "this build on this CPU runs " + join(supported_isas()));
    throw InvalidInput(came + "expected one of scalar, avx2, avx512; this build on this CPU runs " +
                       join(supported_isas()));
}

Isa chosen_isa() {
    static const Isa isa = from_environment();
    return isa;
}

}  // namespace pyflow
