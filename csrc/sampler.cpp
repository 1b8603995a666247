#include "sampler.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

#include "fused_step.hpp"
#include "philox.hpp"

namespace pyflow {

namespace {

// Floats on a cache line's border, NaN until written: a value that nobody wrote shows in the picture. Null for none.
class Floats {
  public:
    explicit Floats(int64_t size) : data_(allocate(size)) {
        std::fill_n(data_.get(), size, std::numeric_limits<float>::quiet_NaN());
    }
    float* get() const { return data_.get(); }

  private:
    struct Free {
        void operator()(float* data) const { std::free(data); }
    };
    static std::unique_ptr<float, Free> allocate(int64_t size) {
        if (size == 0) return nullptr;
        const size_t bytes = (size * sizeof(float) + 63) / 64 * 64;
        auto* data = static_cast<float*>(std::aligned_alloc(64, bytes));
        if (!data) throw std::bad_alloc();
        return std::unique_ptr<float, Free>(data);
    }
    std::unique_ptr<float, Free> data_;
};

// Everything that a run needs; nothing is allocated after it.
struct Workspace {
    Workspace(const Request& request, int64_t batch, int64_t size, int64_t told, bool remembers, bool draws,
              bool keeps_start)
        : x((told ? request.batch : batch) * size),
          joined(told ? batch * (size + told) : 0),
          prediction(batch * size),
          previous(remembers ? request.batch * size : 0),
          noise(draws ? request.batch * size : 0),
          noise0(keeps_start ? request.batch * size : 0),
          s(batch),
          t(batch),
          labels(batch, request.null_label) {
        if (request.labels) std::copy_n(request.labels, request.batch, labels.begin());
    }

    Floats x, joined, prediction, previous, noise, noise0;
    std::vector<float> s, t;
    std::vector<int64_t> labels;
};

bool any(const std::vector<Row>& rows, double Row::* coefficient) {
    return std::any_of(rows.begin(), rows.end(), [=](const Row& row) { return row.*coefficient != 0.0; });
}

// Copies pictures of `size` floats to where the `batch` pictures of a call lie `stride` floats apart: guided, twice.
void join(const float* pictures, int64_t count, int64_t size, float* joined, int64_t batch, int64_t stride) {
    for (int64_t i = 0; i < batch; ++i) std::copy_n(pictures + i % count * size, size, joined + i * stride);
}

double seconds_between(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
}

}  // namespace

void sample(const Denoiser& denoiser, const Request& request, const Output& output) {
    int64_t size = 1;
    for (int64_t extent : denoiser.shape()) size *= extent;
    const int64_t told = denoiser.extra() * (size / denoiser.shape().front()), stride = size + told;
    // Guided, the call's batch is every picture twice: labelled first, then with the null label, in the same state.
    const bool guided = request.guidance != 1.0;
    const int64_t batch = guided ? 2 * request.batch : request.batch, total = request.batch * size;
    // The start is drawn straight into the state, unless the kept pixels will ask for it again.
    const bool keeps_start = request.mask && !request.noise0;
    const auto workspace = std::make_shared<Workspace>(request, batch, size, told, any(request.rows, &Row::h),
                                                       any(request.rows, &Row::n), keeps_start);
    Workspace& w = *workspace;
    // What is told does not change in a run. The states are joined to it before each call, guided ones twice.
    float* twin = guided && !told ? w.x.get() + total : nullptr;
    if (told) join(request.told, request.batch, told, w.joined.get() + size, batch, stride);
    const auto bound = denoiser.bind({batch, told ? w.joined.get() : w.x.get(), w.s.data(), w.t.data(), w.labels.data(),
                                      w.prediction.get(), workspace});

    const Isa isa = chosen_isa();
    const float* noise0 = request.noise0;
    if (!noise0) {
        float* drawn = keeps_start ? w.noise0.get() : w.x.get();
        normal(request.seed, request.first, request.batch, size, 0, drawn, isa);
        noise0 = drawn;
    }
    if (noise0 != w.x.get()) std::copy_n(noise0, total, w.x.get());
    if (twin) std::copy_n(noise0, total, twin);

    const size_t rows = request.rows.size();
    for (size_t k = 0; k < rows; ++k) {
        const Row& row = request.rows[k];
        const bool last = k + 1 == rows;
        const auto begin = Clock::now();
        std::fill(w.s.begin(), w.s.end(), static_cast<float>(row.s));
        std::fill(w.t.begin(), w.t.end(), static_cast<float>(row.t));
        if (told) join(w.x.get(), request.batch, size, w.joined.get(), batch, stride);
        const auto called = Clock::now();
        bound->run();
        const auto predicted = Clock::now();
        if (row.n != 0.0)
            normal(request.seed, request.first, request.batch, size, static_cast<uint32_t>(k + 1), w.noise.get(), isa);
        Step step{};
        step.row = row;
        step.guidance = static_cast<float>(request.guidance);
        step.size = total;
        step.x = w.x.get();
        step.cond = w.prediction.get();
        step.uncond = guided ? w.prediction.get() + total : nullptr;
        step.previous = w.previous.get();
        step.noise = w.noise.get();
        step.mask = request.mask;
        step.image = request.image;
        step.noise0 = noise0;
        step.out = last ? output.states : w.x.get();
        step.out_twin = last ? nullptr : twin;
        step.guided = !last && request.rows[k + 1].h != 0.0 ? w.previous.get() : nullptr;
        fused_step(step, isa);
        const auto ended = Clock::now();
        output.row_seconds[k] = seconds_between(begin, ended);
        output.denoiser_seconds[k] = seconds_between(called, predicted);
        if (request.after_row) request.after_row(static_cast<int64_t>(k), ended);
    }
}

}  // namespace pyflow
