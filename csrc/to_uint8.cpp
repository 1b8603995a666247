#include "to_uint8.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "errors.hpp"

namespace pyflow {

namespace {

bool all_finite(const float* values, int64_t size) {
    bool finite = true;
    for (int64_t i = 0; i < size; ++i) finite &= std::isfinite(values[i]);
    return finite;
}

// The value is never negative, so cutting off after adding a half is rounding to nearest.
uint8_t level(float value) { return static_cast<uint8_t>(std::clamp(value * 127.5f + 127.5f, 0.0f, 255.0f) + 0.5f); }

}  // namespace

void to_uint8(const float* pictures, int64_t batch, int64_t channels, int64_t pixels, uint8_t* out) {
    const int64_t size = channels * pixels;
    for (int64_t i = 0; i < batch; ++i, pictures += size, out += size) {
        if (!all_finite(pictures, size))
            throw InvalidInput("picture " + std::to_string(i) + " holds a NaN or an infinity; expected finite values");
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t pixel = 0; pixel < pixels; ++pixel)
                out[pixel * channels + c] = level(pictures[c * pixels + pixel]);
    }
}

}  // namespace pyflow
