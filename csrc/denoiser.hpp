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
    const float* x;  // (batch, *shape)
    const float* s;  // (batch)
    const float* t;
    const int64_t* label;
    float* out;                          // like x
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

    // Of one picture, without the batch.
    const std::vector<int64_t>& shape() const { return shape_; }
    // Which of x, s, t, label it reads.
    const std::vector<std::string>& inputs() const { return inputs_; }

  protected:
    Denoiser() = default;
    Denoiser(std::vector<int64_t> shape, std::vector<std::string> inputs)
        : shape_(std::move(shape)), inputs_(std::move(inputs)) {}

    std::vector<int64_t> shape_;
    std::vector<std::string> inputs_;
};

}  // namespace pyflow
