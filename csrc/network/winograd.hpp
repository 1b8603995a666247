// How a Winograd convolution is cut, for its kernel and for those who reserve its scratch.
#pragma once

#include <cstdint>

#include "operations.hpp"

namespace pyflow::network {

// Tiles that are transformed, multiplied and transformed back together. `element` is the size of what is multiplied.
int64_t winograd_block(Tile tile, int64_t inputs, int64_t outputs, int64_t tiles, int64_t element);

}  // namespace pyflow::network
