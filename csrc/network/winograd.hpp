// How a Winograd convolution is cut, for its kernel and for those who reserve its scratch.
#pragma once

#include <cstdint>

namespace pyflow::network {

// Tiles that are transformed, multiplied and transformed back together.
int64_t winograd_block(int64_t m, int64_t inputs, int64_t outputs, int64_t tiles, bool transforms);

}  // namespace pyflow::network
