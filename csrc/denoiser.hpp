// What predicts. One denoiser is shared by all threads; each run of the loop binds it to a workspace of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace pyflow {

// The places that a denoiser reads and writes in every call of one run.
struct Buffers {
    int64_t batch;
    const float* x;  // (batch, *input_shape)
    const float* s;  // (batch)
    const float* t;
    const int64_t* label;
    float* out;                          // (batch, *shape)
    std::shared_ptr<const void> memory;  // owns all of the above: whoever keeps a view longer keeps this
};

class Bound {
  public:
    virtual ~Bound() = default;
    virtual void run() = 0;
};

class Denoiser {
  public:
    virtual ~Denoiser() = default;
    Denoiser(const Denoiser&) = delete;
    Denoiser& operator=(const Denoiser&) = delete;

    // Called from many threads at once.
    virtual std::unique_ptr<Bound> bind(const Buffers& buffers) const = 0;

    // Of one picture, without the batch: of its state and of its prediction.
    const std::vector<int64_t>& shape() const { return shape_; }
    // Channels that it is told beside the state; in x they lie behind the state's.
    int64_t extra() const { return extra_; }
    std::vector<int64_t> input_shape() const {
        std::vector<int64_t> joined = shape_;
        joined.front() += extra_;
        return joined;
    }
    // Which of x, s, t, label it reads.
    const std::vector<std::string>& inputs() const { return inputs_; }

  protected:
    Denoiser() = default;
    Denoiser(std::vector<int64_t> shape, int64_t extra, std::vector<std::string> inputs)
        : shape_(std::move(shape)), extra_(extra), inputs_(std::move(inputs)) {}

    std::vector<int64_t> shape_;
    int64_t extra_ = 0;
    std::vector<std::string> inputs_;
};

}  // namespace pyflow
