#include "aoti_denoiser.hpp"

#include <algorithm>
#include <stdexcept>
#include <thread>

#include "errors.hpp"

namespace pyflow {

namespace {

using Tensor = AotiRuntime::Tensor;
using Owned = std::unique_ptr<Tensor, int32_t (*)(Tensor*)>;

constexpr int64_t kLargestBatch = int64_t{1} << 20;  // BATCH_LIMIT of pyflow/export/build.py

std::string text_of(const int64_t* sizes, int64_t rank) {
    std::string text;
    for (int64_t i = 0; i < rank; ++i) text += (text.empty() ? "" : ", ") + std::to_string(sizes[i]);
    return "(" + text + ")";
}

std::vector<int64_t> contiguous(const std::vector<int64_t>& sizes) {
    std::vector<int64_t> strides(sizes.size(), 1);
    for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * sizes[i];
    return strides;
}

// A pass through the gate.
class Pass {
  public:
    explicit Pass(Gate& gate) : gate_(gate) { gate_.enter(); }
    ~Pass() { gate_.leave(); }
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;

  private:
    Gate& gate_;
};

// The handles of one call: the inputs, of which a call that fails early takes none, and the output.
struct Handles {
    Handles(const AotiRuntime& of, size_t count) : runtime(of), tensors(count) {}
    ~Handles() {
        for (Tensor* tensor : tensors)
            if (tensor) runtime.delete_tensor_object(tensor);
    }
    Handles(const Handles&) = delete;
    Handles& operator=(const Handles&) = delete;

    const AotiRuntime& runtime;
    std::vector<Tensor*> tensors;
};

class AotiBound final : public Bound {
  public:
    AotiBound(const AotiDenoiser& denoiser, const Buffers& buffers)
        : denoiser_(denoiser), runtime_(denoiser.runtime()), sizes_{buffers.batch}, memory_(buffers.memory) {
        sizes_.insert(sizes_.end(), denoiser.shape().begin(), denoiser.shape().end());
        std::vector<int64_t> given = denoiser.input_shape();
        given.insert(given.begin(), buffers.batch);
        for (const std::string& name : denoiser.inputs()) {
            if (name == "x")
                add(buffers.x, runtime_.dtype_float32(), given);
            else if (name == "label")
                add(buffers.label, runtime_.dtype_int64(), {buffers.batch});
            else
                add(name == "s" ? buffers.s : buffers.t, runtime_.dtype_float32(), {buffers.batch});
        }
        out_ = view(buffers.out, runtime_.dtype_float32(), sizes_);
    }

    void run() override {
        for (size_t i = 0; i < device_.size(); ++i) runtime_.check(runtime_.copy(device_[i].get(), host_[i].get(), 0));
        const std::vector<Owned>& inputs = denoiser_.staged() ? device_ : host_;
        Handles handles(runtime_, inputs.size() + 1);
        for (size_t i = 0; i < inputs.size(); ++i)
            runtime_.check(runtime_.new_tensor_handle(inputs[i].get(), &handles.tensors[i]));
        denoiser_.run(handles.tensors);
        check_prediction(handles.tensors.back());
        // Whatever the strides and the device of the output; to the host it also waits for the GPU.
        runtime_.check(runtime_.copy(out_.get(), handles.tensors.back(), 0));
    }

  private:
    void add(const void* data, int32_t dtype, const std::vector<int64_t>& sizes) {
        host_.push_back(view(data, dtype, sizes));
        if (!denoiser_.staged()) return;
        const std::vector<int64_t> strides = contiguous(sizes);
        Tensor* tensor = nullptr;
        runtime_.check(runtime_.empty_strided(sizes.size(), sizes.data(), strides.data(), dtype,
                                              denoiser_.device().type, denoiser_.device().index, &tensor));
        device_.emplace_back(tensor, runtime_.delete_tensor_object);
    }

    // A tensor over our own memory.
    Owned view(const void* data, int32_t dtype, const std::vector<int64_t>& sizes) const {
        const std::vector<int64_t> strides = contiguous(sizes);
        Tensor* tensor = nullptr;
        runtime_.check(runtime_.create_tensor_from_blob(const_cast<void*>(data), sizes.size(), sizes.data(),
                                                        strides.data(), 0, dtype, runtime_.device_type_cpu(), -1,
                                                        &tensor));
        return {tensor, runtime_.delete_tensor_object};
    }

    void check_prediction(Tensor* prediction) const {
        if (!prediction) throw InvalidArtefact("the compiled network made no prediction; export it again");
        int32_t dtype = 0;
        int64_t rank = 0, *sizes = nullptr;
        runtime_.check(runtime_.get_dtype(prediction, &dtype));
        runtime_.check(runtime_.get_dim(prediction, &rank));
        runtime_.check(runtime_.get_sizes(prediction, &sizes));
        if (dtype != runtime_.dtype_float32() || !std::equal(sizes, sizes + rank, sizes_.begin(), sizes_.end()))
            throw InvalidArtefact(
                "the compiled network made " + text_of(sizes, rank) + " of torch's dtype " + std::to_string(dtype) +
                "; expected float32 (" + std::to_string(runtime_.dtype_float32()) +
                ") with the shape of the state: " + text_of(sizes_.data(), sizes_.size()) + "; export it again");
    }

    const AotiDenoiser& denoiser_;
    const AotiRuntime& runtime_;
    std::vector<int64_t> sizes_;  // of the state and of the prediction
    std::shared_ptr<const void> memory_;
    std::vector<Owned> host_, device_;  // the inputs, and their copies when staged
    Owned out_{nullptr, nullptr};
};

}  // namespace

void Gate::enter() {
    std::unique_lock<std::mutex> lock(mutex_);
    left_.wait(lock, [this] { return places_ > 0; });
    --places_;
}

void Gate::leave() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        ++places_;
    }
    left_.notify_one();
}

AotiDenoiser::AotiDenoiser(const std::string& library, const std::string& torch_library, std::vector<int64_t> shape,
                           int64_t extra, std::vector<std::string> inputs, int64_t classes, const std::string& device,
                           bool staged)
    : Denoiser(std::move(shape), extra, std::move(inputs)),
      runtime_(library, torch_library),
      on_cpu_(device == "cpu"),
      device_(on_cpu_ ? Device{runtime_.device_type_cpu(), -1}
                      : Device{runtime_.device_type_cuda(), std::stoi(device.substr(device.find(':') + 1))}),
      staged_(staged || !on_cpu_),
      classes_(classes),
      models_(on_cpu_ ? std::max(1u, std::thread::hardware_concurrency()) : 1),
      gate_(models_) {
    AotiRuntime::Container* container = nullptr;
    if (runtime_.CreateWithDevice(&container, models_, device.c_str(), nullptr) != 0)
        throw InvalidArtefact("the compiled network did not start on " + device + ": " + runtime_.failure());
    container_ = {container, runtime_.Delete};
    size_t inputs_wanted = 0, outputs_made = 0;
    if (runtime_.GetNumInputs(container, &inputs_wanted) != 0 || runtime_.GetNumOutputs(container, &outputs_made) != 0)
        throw InvalidArtefact("the compiled network does not tell its inputs: " + runtime_.failure());
    if (inputs_wanted != inputs_.size() || outputs_made != 1)
        throw InvalidArtefact("the compiled network takes " + std::to_string(inputs_wanted) + " inputs and makes " +
                              std::to_string(outputs_made) + " outputs; expected " + std::to_string(inputs_.size()) +
                              " and 1: export it again");
}

std::unique_ptr<Bound> AotiDenoiser::bind(const Buffers& buffers) const {
    if (buffers.batch > kLargestBatch)
        throw InvalidInput("the network was compiled for batches up to " + std::to_string(kLargestBatch) +
                           " and is asked for " + std::to_string(buffers.batch) +
                           " (guidance doubles the batch); take several batches");
    if (std::find(inputs_.begin(), inputs_.end(), "label") != inputs_.end()) {
        const int64_t* end = buffers.label + buffers.batch;
        const int64_t* wrong = std::find_if(buffers.label, end, [this](int64_t l) { return l < 0 || l > classes_; });
        if (wrong != end)
            throw InvalidInput("a label is " + std::to_string(*wrong) + "; expected 0 to " + std::to_string(classes_) +
                               ", the last of them no label");
    }
    // A thread that torch has not met takes OpenMP's number of threads for torch's, and gets other last bits.
    runtime_.check(runtime_.parallel_for(0, 1, 1, [](int64_t, int64_t, void*) {}, nullptr));
    return std::make_unique<AotiBound>(*this, buffers);
}

void AotiDenoiser::run(std::vector<AotiRuntime::Tensor*>& handles) const {
    const Pass pass(gate_);
    // The stream of our own copies, which this thread may have changed.
    void* stream = nullptr;
    if (!on_cpu_ && runtime_.current_cuda_stream) runtime_.check(runtime_.current_cuda_stream(device_.index, &stream));
    const size_t inputs = handles.size() - 1;
    if (runtime_.Run(container_.get(), handles.data(), inputs, &handles[inputs], 1, stream, nullptr) != 0)
        throw std::runtime_error("the compiled network failed: " + runtime_.failure());
}

}  // namespace pyflow
