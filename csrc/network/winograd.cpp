#include "winograd.hpp"

#include <algorithm>

#include "kernels.hpp"

namespace pyflow::network {

namespace {

int64_t panels_of(int64_t outputs) { return (outputs + kPanel - 1) / kPanel; }

}  // namespace

int64_t winograd_block(int64_t m, int64_t inputs, int64_t outputs, int64_t tiles, bool transforms) {
    const int64_t positions = (m + 2) * (m + 2), element = transforms ? 4 : 2;
    const int64_t filters = positions * inputs * panels_of(outputs) * kPanel * element;
    const int64_t tile = positions * (inputs * element + kPanel * 4);
    // What a block reads and writes stays in L2 beside small filters; large ones are worth more tiles at a time.
    const int64_t budget = filters <= 640 * 1024 ? 320 * 1024 : 1024 * 1024;
    const int64_t wanted = std::max<int64_t>(24, budget / tile / 12 * 12);
    return std::min(wanted, tiles);
}

int64_t convolve_scratch(const Graph& graph, const Operation& operation, int64_t pictures) {
    if (operation.algorithm == Algorithm::direct) return 0;
    const int64_t m = operation.algorithm == Algorithm::winograd4 ? 4 : 2, positions = (m + 2) * (m + 2);
    const Buffer& output = graph.buffer_of(operation.output);
    const int64_t inputs = graph.tensors[operation.input].channels, outputs = graph.tensors[operation.output].channels;
    const bool transforms = operation.weights_type == Type::f32;
    const int64_t element = transforms ? 4 : 2, panels = panels_of(outputs);
    const int64_t tiles = pictures * (output.height / m) * (output.width / m);
    const int64_t block = winograd_block(m, inputs, outputs, tiles, transforms);
    const int64_t kept = transforms ? (block < tiles ? panels : 1) : 0;
    return positions * (block * inputs * element + 64) + 64 + positions * (block * kPanel + 16) * 4 +
           kept * positions * (inputs * kPanel * 4 + 64);
}

}  // namespace pyflow::network
