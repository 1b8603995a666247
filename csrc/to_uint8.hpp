#pragma once

#include <cstdint>

namespace pyflow {

// float NCHW in [-1, 1] to uint8 NHWC, rounded to nearest, clamped. Throws InvalidInput with the index of the first
// picture that holds a NaN or an infinity.
void to_uint8(const float* pictures, int64_t batch, int64_t channels, int64_t pixels, uint8_t* out);

}  // namespace pyflow
