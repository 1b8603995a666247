// ONNX Runtime through its C function table. Its headers are not in the wheel, but the table is append-only: the slots
// below were run on 1.20 to 1.31. Function names are those of onnxruntime_c_api.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

struct OrtAllocator;
struct OrtEnv;
struct OrtMemoryInfo;
struct OrtRunOptions;
struct OrtSession;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtTypeInfo;
struct OrtValue;

namespace pyflow {

// Values of the C API's enums.
constexpr int kOrtFloat = 1, kOrtInt64 = 7;

template <class Handle>
using OrtOwned = std::unique_ptr<Handle, void (*)(Handle*)>;

// The opened library and its environment. Stays in the process: a library that has started threads cannot be unloaded.
class OnnxRuntime {
  public:
    explicit OnnxRuntime(const std::string& library);

    // The message of a failed call, or empty.
    std::string failure(OrtStatus* status) const;
    // Throws std::runtime_error when `status` tells of a failure.
    void check(OrtStatus* status) const;
    const OrtEnv* env() const { return env_.get(); }

    const char* (*GetErrorMessage)(const OrtStatus*);
    OrtStatus* (*CreateEnv)(int level, const char* id, OrtEnv**);
    OrtStatus* (*CreateSessionFromArray)(const OrtEnv*, const void*, size_t, const OrtSessionOptions*, OrtSession**);
    OrtStatus* (*Run)(OrtSession*, const OrtRunOptions*, const char* const* input_names, const OrtValue* const* inputs,
                      size_t input_count, const char* const* output_names, size_t output_count, OrtValue** outputs);
    OrtStatus* (*CreateSessionOptions)(OrtSessionOptions**);
    OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions*, int);
    OrtStatus* (*SessionGetInputCount)(const OrtSession*, size_t*);
    OrtStatus* (*SessionGetInputTypeInfo)(const OrtSession*, size_t, OrtTypeInfo**);
    OrtStatus* (*SessionGetOutputTypeInfo)(const OrtSession*, size_t, OrtTypeInfo**);
    OrtStatus* (*SessionGetInputName)(const OrtSession*, size_t, OrtAllocator*, char**);
    OrtStatus* (*SessionGetOutputName)(const OrtSession*, size_t, OrtAllocator*, char**);
    OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void*, size_t bytes, const int64_t* shape,
                                                 size_t rank, int type, OrtValue**);
    OrtStatus* (*CastTypeInfoToTensorInfo)(const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo**);
    OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo*, int*);
    OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo*, size_t*);
    OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t);
    OrtStatus* (*CreateCpuMemoryInfo)(int allocator, int memory, OrtMemoryInfo**);
    OrtStatus* (*AllocatorFree)(OrtAllocator*, void*);
    OrtStatus* (*GetAllocatorWithDefaultOptions)(OrtAllocator**);
    void (*ReleaseEnv)(OrtEnv*);
    void (*ReleaseStatus)(OrtStatus*);
    void (*ReleaseMemoryInfo)(OrtMemoryInfo*);
    void (*ReleaseSession)(OrtSession*);
    void (*ReleaseValue)(OrtValue*);
    void (*ReleaseTypeInfo)(OrtTypeInfo*);
    void (*ReleaseSessionOptions)(OrtSessionOptions*);

  private:
    OrtOwned<OrtEnv> env_{nullptr, nullptr};
};

}  // namespace pyflow
