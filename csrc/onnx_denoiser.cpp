#include "onnx_denoiser.hpp"

#include <algorithm>

#include "errors.hpp"

namespace pyflow {

namespace {

std::string text_of(const std::vector<int64_t>& shape) {
    std::string text;
    for (int64_t extent : shape) text += (text.empty() ? "" : ", ") + (extent < 0 ? "?" : std::to_string(extent));
    return "(" + text + ")";
}

class OnnxBound final : public Bound {
  public:
    OnnxBound(const OnnxRuntime& runtime, OrtSession* session, const std::vector<std::string>& inputs,
              const std::string& output, std::vector<int64_t> given, std::vector<int64_t> made, const Buffers& buffers)
        : runtime_(runtime), session_(session), output_name_(output.c_str()), memory_(buffers.memory) {
        for (std::vector<int64_t>* shape : {&given, &made}) shape->insert(shape->begin(), buffers.batch);
        for (const std::string& name : inputs) {
            input_names_.push_back(name.c_str());
            if (name == "x")
                add(buffers.x, sizeof(float), kOrtFloat, given);
            else if (name == "label")
                add(buffers.label, sizeof(int64_t), kOrtInt64, {buffers.batch});
            else
                add(name == "s" ? buffers.s : buffers.t, sizeof(float), kOrtFloat, {buffers.batch});
        }
        add(buffers.out, sizeof(float), kOrtFloat, made);
        for (const auto& value : values_) handles_.push_back(value.get());
    }

    void run() override {
        runtime_.check(runtime_.Run(session_, nullptr, input_names_.data(), handles_.data(), input_names_.size(),
                                    &output_name_, 1, &handles_.back()));
    }

  private:
    // A tensor over our own memory: nothing is copied in or out of ONNX Runtime.
    void add(const void* data, size_t element_bytes, int type, const std::vector<int64_t>& shape) {
        OrtMemoryInfo* info = nullptr;
        runtime_.check(runtime_.CreateCpuMemoryInfo(0, 0, &info));
        const OrtOwned<OrtMemoryInfo> owned(info, runtime_.ReleaseMemoryInfo);
        size_t bytes = element_bytes;
        for (int64_t extent : shape) bytes *= static_cast<size_t>(extent);
        OrtValue* value = nullptr;
        runtime_.check(runtime_.CreateTensorWithDataAsOrtValue(info, const_cast<void*>(data), bytes, shape.data(),
                                                               shape.size(), type, &value));
        values_.emplace_back(value, runtime_.ReleaseValue);
    }

    const OnnxRuntime& runtime_;
    OrtSession* session_;
    std::vector<const char*> input_names_;
    const char* output_name_;
    std::shared_ptr<const void> memory_;
    std::vector<OrtOwned<OrtValue>> values_;  // the inputs, then the output
    std::vector<OrtValue*> handles_;          // the same, as the C API wants them
};

}  // namespace

OnnxDenoiser::OnnxDenoiser(const std::string& library, const void* model, size_t model_bytes, int threads)
    : runtime_(library) {
    OrtSessionOptions* options = nullptr;
    runtime_.check(runtime_.CreateSessionOptions(&options));
    const OrtOwned<OrtSessionOptions> owned(options, runtime_.ReleaseSessionOptions);
    runtime_.check(runtime_.SetIntraOpNumThreads(options, threads));
    OrtSession* session = nullptr;
    const std::string refusal =
        runtime_.failure(runtime_.CreateSessionFromArray(runtime_.env(), model, model_bytes, options, &session));
    if (!refusal.empty()) throw InvalidArtefact("ONNX Runtime refused the model: " + refusal);
    session_ = {session, runtime_.ReleaseSession};
    runtime_.check(runtime_.GetAllocatorWithDefaultOptions(&allocator_));
    read_inputs();
    read_output();
}

std::string OnnxDenoiser::owned_name(char* name) const {
    const std::string copy = name;
    runtime_.check(runtime_.AllocatorFree(allocator_, name));
    return copy;
}

OnnxDenoiser::Tensor OnnxDenoiser::tensor(std::string name, OrtTypeInfo* info) const {
    const OrtOwned<OrtTypeInfo> owned(info, runtime_.ReleaseTypeInfo);
    const OrtTensorTypeAndShapeInfo* details = nullptr;
    runtime_.check(runtime_.CastTypeInfoToTensorInfo(info, &details));
    if (!details) throw InvalidArtefact("'" + name + "' of the model is not a tensor; expected a tensor");
    Tensor tensor{std::move(name), 0, {}};
    runtime_.check(runtime_.GetTensorElementType(details, &tensor.type));
    size_t rank = 0;
    runtime_.check(runtime_.GetDimensionsCount(details, &rank));
    tensor.shape.resize(rank);
    runtime_.check(runtime_.GetDimensions(details, tensor.shape.data(), rank));
    return tensor;
}

void OnnxDenoiser::read_inputs() {
    size_t count = 0;
    runtime_.check(runtime_.SessionGetInputCount(session_.get(), &count));
    for (size_t i = 0; i < count; ++i) {
        char* name = nullptr;
        runtime_.check(runtime_.SessionGetInputName(session_.get(), i, allocator_, &name));
        OrtTypeInfo* info = nullptr;
        const std::string copy = owned_name(name);
        runtime_.check(runtime_.SessionGetInputTypeInfo(session_.get(), i, &info));
        const Tensor input = tensor(copy, info);
        if (input.name != "x" && input.name != "s" && input.name != "t" && input.name != "label")
            throw InvalidArtefact("the model asks for '" + input.name + "'; expected inputs among x, s, t, label");
        if (input.type != (input.name == "label" ? kOrtInt64 : kOrtFloat))
            throw InvalidArtefact("the model's input '" + input.name + "' has element type " +
                                  std::to_string(input.type) + "; expected x, s, t in float32 (1), label in int64 (7)");
        if (input.name == "x") {
            const bool fits = input.shape.size() >= 2 && std::all_of(input.shape.begin() + 1, input.shape.end(),
                                                                     [](int64_t extent) { return extent > 0; });
            if (!fits)
                throw InvalidArtefact("the model's x is " + text_of(input.shape) +
                                      "; expected a batch and then the fixed shape of a picture");
            fixed_batch_ = input.shape[0];
            shape_.assign(input.shape.begin() + 1, input.shape.end());
        } else if (input.shape.size() != 1) {
            throw InvalidArtefact("the model's input '" + input.name + "' is " + text_of(input.shape) +
                                  "; expected one value a picture");
        }
        inputs_.push_back(input.name);
    }
    if (shape_.empty()) throw InvalidArtefact("the model has no input 'x'; expected inputs among x, s, t, label");
}

void OnnxDenoiser::read_output() {
    char* name = nullptr;
    runtime_.check(runtime_.SessionGetOutputName(session_.get(), 0, allocator_, &name));
    output_ = owned_name(name);
    OrtTypeInfo* info = nullptr;
    runtime_.check(runtime_.SessionGetOutputTypeInfo(session_.get(), 0, &info));
    const Tensor output = tensor(output_, info);
    bool fits = output.type == kOrtFloat && output.shape.size() == shape_.size() + 1;
    for (size_t i = 0; fits && i < shape_.size(); ++i) {
        const int64_t extent = output.shape[i + 1];
        fits = extent < 0 || extent == shape_[i] || (i == 0 && extent > 0 && extent < shape_[i]);
    }
    if (!fits)
        throw InvalidArtefact("the model's first output '" + output_ + "' is " + text_of(output.shape) +
                              " of element type " + std::to_string(output.type) +
                              "; expected float32 (1) with the shape of x, or with fewer channels: a batch and " +
                              text_of(shape_));
    if (output.shape[1] < 0) return;
    extra_ = shape_[0] - output.shape[1];
    shape_[0] = output.shape[1];
}

std::unique_ptr<Bound> OnnxDenoiser::bind(const Buffers& buffers) const {
    if (fixed_batch_ > 0 && buffers.batch != fixed_batch_)
        throw InvalidInput("the model was exported for a batch of " + std::to_string(fixed_batch_) +
                           " and is asked for " + std::to_string(buffers.batch) +
                           " (guidance doubles the batch); export it with a free batch");
    return std::make_unique<OnnxBound>(runtime_, session_.get(), inputs_, output_, input_shape(), shape(), buffers);
}

}  // namespace pyflow
