// AOTInductor through its C interface: the compiled network's library, and the functions of libtorch that it and we
// call. No header of torch is needed; names and signatures are those of torch's aoti_runtime/interface.h and
// aoti_torch/c/shim.h, which torch keeps stable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

struct AOTInductorModelContainerOpaque;
struct AtenTensorOpaque;

namespace pyflow {

class AotiRuntime {
  public:
    using Tensor = AtenTensorOpaque;
    using Container = AOTInductorModelContainerOpaque;

    // `torch_library` is the libtorch_cpu.so that this process has loaded. The file `library` may be gone afterwards.
    AotiRuntime(const std::string& library, const std::string& torch_library);

    // Throws std::runtime_error when a call to libtorch failed.
    void check(int32_t status) const;
    // The message of the network's last failed call on this thread.
    std::string failure() const;

    int32_t (*CreateWithDevice)(Container**, size_t models, const char* device, const char* kernels);
    int32_t (*Delete)(Container*);
    // Takes the inputs, and puts null in place of each that it took; gives the outputs to the caller.
    int32_t (*Run)(Container*, Tensor** inputs, size_t input_count, Tensor** outputs, size_t output_count, void* stream,
                   void* proxy_executor);
    int32_t (*GetNumInputs)(Container*, size_t*);
    int32_t (*GetNumOutputs)(Container*, size_t*);

    int32_t (*device_type_cpu)();
    int32_t (*device_type_cuda)();
    int32_t (*dtype_float32)();
    int32_t (*dtype_int64)();
    int32_t (*create_tensor_from_blob)(void* data, int64_t rank, const int64_t* sizes, const int64_t* strides,
                                       int64_t offset, int32_t dtype, int32_t device_type, int32_t device_index,
                                       Tensor**);
    int32_t (*empty_strided)(int64_t rank, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                             int32_t device_type, int32_t device_index, Tensor**);
    int32_t (*new_tensor_handle)(Tensor*, Tensor**);  // a second owner of the same tensor
    int32_t (*delete_tensor_object)(Tensor*);
    int32_t (*copy)(Tensor* to, Tensor* from, int32_t non_blocking);
    int32_t (*get_dtype)(Tensor*, int32_t*);
    int32_t (*get_dim)(Tensor*, int64_t*);
    int32_t (*get_sizes)(Tensor*, int64_t**);                             // the tensor's own
    int32_t (*current_cuda_stream)(int32_t device_index, void** stream);  // null in a network for the CPU
    int32_t (*parallel_for)(int64_t begin, int64_t end, int64_t grain, void (*)(int64_t, int64_t, void*), void*);

  private:
    using Library = std::unique_ptr<void, int (*)(void*)>;

    std::string reason() const;

    Library torch_, network_;
    int32_t (*get_last_error_)(const char**);
    const char* (*exception_what_)();
};

}  // namespace pyflow
