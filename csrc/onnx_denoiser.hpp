// A denoiser that runs an ONNX model on the CPU with ONNX Runtime.
#pragma once

#include "denoiser.hpp"
#include "onnx_runtime.hpp"

namespace pyflow {

// Inputs: x (float, batch first) and any of s, t (float, batch), label (int64, batch). The first output is the
// prediction, shaped like x or with fewer channels: then the rest of x is what it is told beside the state.
class OnnxDenoiser final : public Denoiser {
  public:
    // `model` is the file's content, so that the bytes that were verified are the bytes that run. 0 threads: ONNX
    // Runtime's own choice, one for each physical core.
    OnnxDenoiser(const std::string& library, const void* model, size_t model_bytes, int threads);

    std::unique_ptr<Bound> bind(const Buffers& buffers) const override;

  private:
    struct Tensor {
        std::string name;
        int type;
        std::vector<int64_t> shape;  // -1: free
    };

    Tensor tensor(std::string name, OrtTypeInfo* info) const;
    std::string owned_name(char* name) const;
    void read_inputs();
    void read_output();

    OnnxRuntime runtime_;
    OrtOwned<OrtSession> session_{nullptr, nullptr};
    OrtAllocator* allocator_ = nullptr;  // ONNX Runtime's own, never released
    int64_t fixed_batch_ = -1;
    std::string output_;
};

}  // namespace pyflow
