#include "winograd.hpp"

#include <algorithm>

#include "kernels.hpp"

namespace pyflow::network {

namespace {

int64_t panels_of(int64_t outputs) { return (outputs + kPanel - 1) / kPanel; }

}  // namespace

int64_t winograd_block(Tile tile, int64_t inputs, int64_t outputs, int64_t tiles, int64_t element) {
    const int64_t positions = tile.positions();
    const int64_t filters = positions * inputs * panels_of(outputs) * kPanel * element;
    const int64_t bytes = positions * (inputs * element + kPanel * 4);
    // What a block reads and writes stays in L2 beside small filters; large ones are worth more tiles at a time.
    const int64_t budget = filters <= 640 * 1024 ? 320 * 1024 : 1024 * 1024;
    const int64_t wanted = std::max<int64_t>(24, budget / bytes / 12 * 12);
    return std::min(wanted, tiles);
}

int64_t convolve_scratch(const Graph& graph, const Operation& operation, int64_t pictures) {
    if (operation.algorithm == Algorithm::direct) return 0;
    const Tile tile = tile_of(operation.algorithm);
    const int64_t positions = tile.positions(), element = operation.weights_type == Type::f32 ? 4 : 2;
    const Buffer& output = graph.buffer_of(operation.output);
    const int64_t inputs = graph.tensors[operation.input].channels, outputs = graph.tensors[operation.output].channels;
    const int64_t tiles = pictures * (output.height / tile.height) * (output.width / tile.width);
    const int64_t block = winograd_block(tile, inputs, outputs, tiles, element);
    const int64_t kept = block < tiles ? panels_of(outputs) : 1;
    const int64_t filters = holds_positions(operation.algorithm, operation.weights_type) ? 0 : kept;
    return positions * (block * inputs * element + 64) + 64 + positions * (block * kPanel + 16) * 4 +
           filters * positions * (inputs * kPanel * element + 64);
}

}  // namespace pyflow::network
