#include "onnx_runtime.hpp"

#include <dlfcn.h>

#include <stdexcept>

#include "errors.hpp"

namespace pyflow {

namespace {

constexpr uint32_t kApiVersion = 16;
// Only what would end the process: every other failure comes back as a status, and is raised once, with its message.
constexpr int kLogFatal = 4;

struct OrtApiBase {
    const void* (*GetApi)(uint32_t version);
    const char* (*GetVersionString)();
};

const OrtApiBase* open(const std::string& library) {
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        throw BackendUnavailable("ONNX Runtime could not be opened: " + std::string(dlerror()) +
                                 "; install it with: pip install \"pyflow-engine[onnx]\"");
    void* get_base = dlsym(handle, "OrtGetApiBase");
    if (!get_base)
        throw BackendUnavailable(library + " does not export OrtGetApiBase; expected the library of ONNX Runtime");
    return reinterpret_cast<const OrtApiBase* (*)()>(get_base)();
}

template <class Function>
void load(const void* table, int slot, Function& function) {
    function = reinterpret_cast<Function>(static_cast<void* const*>(table)[slot]);
}

}  // namespace

OnnxRuntime::OnnxRuntime(const std::string& library) {
    const OrtApiBase* base = open(library);
    const void* table = base->GetApi(kApiVersion);
    if (!table)
        throw BackendUnavailable("ONNX Runtime " + std::string(base->GetVersionString()) +
                                 " does not offer C API 16; expected 1.16 or newer: pip install -U onnxruntime");
    load(table, 2, GetErrorMessage);
    load(table, 3, CreateEnv);
    load(table, 8, CreateSessionFromArray);
    load(table, 9, Run);
    load(table, 10, CreateSessionOptions);
    load(table, 24, SetIntraOpNumThreads);
    load(table, 30, SessionGetInputCount);
    load(table, 33, SessionGetInputTypeInfo);
    load(table, 34, SessionGetOutputTypeInfo);
    load(table, 36, SessionGetInputName);
    load(table, 37, SessionGetOutputName);
    load(table, 49, CreateTensorWithDataAsOrtValue);
    load(table, 55, CastTypeInfoToTensorInfo);
    load(table, 60, GetTensorElementType);
    load(table, 61, GetDimensionsCount);
    load(table, 62, GetDimensions);
    load(table, 69, CreateCpuMemoryInfo);
    load(table, 76, AllocatorFree);
    load(table, 78, GetAllocatorWithDefaultOptions);
    load(table, 92, ReleaseEnv);
    load(table, 93, ReleaseStatus);
    load(table, 94, ReleaseMemoryInfo);
    load(table, 95, ReleaseSession);
    load(table, 96, ReleaseValue);
    load(table, 98, ReleaseTypeInfo);
    load(table, 100, ReleaseSessionOptions);
    OrtEnv* env = nullptr;
    check(CreateEnv(kLogFatal, "pyflow", &env));
    env_ = {env, ReleaseEnv};
}

std::string OnnxRuntime::failure(OrtStatus* status) const {
    if (!status) return {};
    const OrtOwned<OrtStatus> owned(status, ReleaseStatus);
    return GetErrorMessage(status);
}

void OnnxRuntime::check(OrtStatus* status) const {
    if (status) throw std::runtime_error("ONNX Runtime failed: " + failure(status));
}

}  // namespace pyflow
