// A denoiser that runs a network compiled by AOTInductor, on the CPU or on a GPU.
#pragma once

#include <condition_variable>
#include <mutex>

#include "aoti_runtime.hpp"
#include "denoiser.hpp"

namespace pyflow {

// Lets so many through at once. A container's own queue does not wake a call that waits when another one fails.
class Gate {
  public:
    explicit Gate(size_t places) : places_(places) {}
    void enter();
    void leave();

  private:
    std::mutex mutex_;
    std::condition_variable left_;
    size_t places_;
};

// `inputs` are the network's, in its order: x (float, batch first) and any of s, t (float, batch), label (int64, batch,
// 0 to `classes`). Its one output is the prediction, shaped like the state. Compiled code checks nothing: what could
// send it out of bounds is refused here.
class AotiDenoiser final : public Denoiser {
  public:
    struct Device {
        int32_t type, index;
    };

    // On "cpu" the network reads and writes the loop's memory, or copies of it when `staged`; on "cuda:0" always
    // copies.
    AotiDenoiser(const std::string& library, const std::string& torch_library, std::vector<int64_t> shape,
                 int64_t extra, std::vector<std::string> inputs, int64_t classes, const std::string& device,
                 bool staged);

    std::unique_ptr<Bound> bind(const Buffers& buffers) const override;

    // Runs once; `handles` holds the inputs, which are taken, and a null that the output replaces.
    void run(std::vector<AotiRuntime::Tensor*>& handles) const;
    const AotiRuntime& runtime() const { return runtime_; }
    Device device() const { return device_; }
    bool staged() const { return staged_; }

  private:
    using Container = std::unique_ptr<AotiRuntime::Container, int32_t (*)(AotiRuntime::Container*)>;

    AotiRuntime runtime_;
    bool on_cpu_;
    Device device_;
    bool staged_;
    int64_t classes_;
    size_t models_;  // how many runs go on at once; on a GPU all would share one stream
    Container container_{nullptr, nullptr};
    mutable Gate gate_;
};

}  // namespace pyflow
