#include "network_builder.hpp"

#include <cstring>

#include "../network/operations.hpp"

namespace pyflow::testing {

using namespace network;

namespace {

Operation made(const std::string& name, Kind kind) {
    Operation operation{};
    operation.kind = kind;
    operation.input = operation.other = operation.output = kNone;
    operation.taps = operation.stride = operation.upsample = 1;
    operation.weights = operation.bias = operation.scales = kNoWeights;
    name.copy(operation.name, sizeof operation.name - 1);
    return operation;
}

}  // namespace

Builder::Builder(Random& random, uint32_t channels, uint32_t height, uint32_t width, uint32_t classes)
    : random_(random) {
    Header& header = file_.header;
    std::memcpy(header.magic, "pyflow\0n", sizeof header.magic);
    header.version = 1;
    header.channels = channels;
    header.height = height;
    header.width = width;
    header.times = static_cast<uint32_t>(1 + random.below(2));
    header.classes = classes;
    header.points = height * width == 1;
}

Buffer Builder::shape(uint32_t tensor) const {
    Buffer shape = file_.buffer_of(tensor);
    shape.channels = file_.tensors[tensor].channels;
    return shape;
}

uint32_t Builder::buffer(Buffer buffer) {
    file_.buffers.push_back(buffer);
    return static_cast<uint32_t>(file_.buffers.size() - 1);
}

uint32_t Builder::part(uint32_t buffer, uint32_t offset, uint32_t channels) {
    file_.tensors.push_back({buffer, offset, channels});
    return static_cast<uint32_t>(file_.tensors.size() - 1);
}

uint32_t Builder::load(uint32_t border, uint32_t told) {
    const Header& state = file_.header;
    Operation operation = made("load", Kind::load);
    operation.output = whole({state.height, state.width, state.channels + told, border, Type::f32});
    return add(operation);
}

void Builder::store(uint32_t input) {
    Operation operation = made("store", Kind::store);
    operation.input = input;
    add(operation);
}

uint32_t Builder::waves() {
    Operation operation = made("waves", Kind::waves);
    operation.output = pixels(1, 1, kWaves * file_.header.times);
    return add(operation);
}

uint32_t Builder::label(uint32_t channels) {
    Operation operation = made("label", Kind::label);
    operation.output = pixels(1, 1, channels);
    return add(operation);
}

uint32_t Builder::prepare(const std::string& name, uint32_t input, const Prepared& how) {
    const Buffer from = shape(input);
    Operation operation = made(name, Kind::prepare);
    operation.input = input;
    operation.other = how.film;
    operation.output =
        whole({how.upsample * from.height, how.upsample * from.width, from.channels, how.border, how.type});
    operation.groups = how.groups;
    operation.upsample = how.upsample;
    operation.film_offset = how.film_offset;
    operation.silu = how.silu;
    operation.epsilon = 1e-5f;
    operation.scale = 0.02f;
    operation.zero = static_cast<uint32_t>(random_.below(256));
    return add(operation);
}

Builder::Way Builder::draw(const Buffer& from, uint32_t taps, uint32_t stride) {
    std::vector<Way> ways = {{}};
    if (from.channels % 4 == 0) {
        ways.push_back({Algorithm::direct, Type::bf16, Type::bf16});
        ways.push_back({Algorithm::direct, Type::s8, Type::u8});
    }
    if (taps == 3 && stride == 1 && from.height % 2 == 0 && from.width % 2 == 0) {
        for (Algorithm algorithm : {Algorithm::winograd2, Algorithm::winograd4, Algorithm::winograd2x4}) {
            const Tile tile = tile_of(algorithm);
            if (from.height % tile.height != 0 || from.width % tile.width != 0) continue;
            ways.push_back({algorithm, Type::f32, Type::f32});
            if (from.channels % 2 == 0) ways.push_back({algorithm, Type::bf16, Type::f32});
        }
    }
    return random_.one_of(ways);
}

uint32_t Builder::convolve(const std::string& name, uint32_t input, uint32_t output, const Way& way, uint32_t taps,
                           uint32_t stride, uint32_t other, bool silu) {
    Operation operation = made(name, Kind::convolve);
    operation.input = input;
    operation.other = other;
    operation.output = output;
    operation.taps = taps;
    operation.stride = stride;
    operation.algorithm = way.algorithm;
    operation.weights_type = way.weights;
    operation.silu = silu;
    return add(operation);
}

uint32_t Builder::project(const std::string& name, uint32_t input, uint32_t channels, bool silu, uint32_t other) {
    const Buffer from = shape(input);
    return convolve(name, input, pixels(from.height, from.width, channels), {}, 1, 1, other, silu);
}

uint32_t Builder::attend(const std::string& name, uint32_t input, uint32_t heads) {
    const Buffer from = shape(input);
    Operation operation = made(name, Kind::attend);
    operation.input = input;
    operation.output = pixels(from.height, from.width, from.channels / 3);
    operation.heads = heads;
    return add(operation);
}

uint32_t Builder::condition(uint32_t channels) {
    const uint32_t table = file_.header.classes > 0 ? label(channels) : kNone;
    const uint32_t hidden = project("time.0", waves(), channels, true);
    return project("time.2", hidden, channels, false, table);
}

uint32_t Builder::add(Operation operation) {
    Graph graph;
    graph.header = file_.header;
    graph.buffers = file_.buffers;
    graph.tensors = file_.tensors;
    const Needs needs = needs_of(graph, operation);
    const float deviation = operation.kind == Kind::prepare ? 1.0f : 0.1f;
    if (needs.weights > 0)
        operation.weights =
            keep(needs.weights, operation.kind == Kind::convolve ? operation.weights_type : Type::f32, deviation);
    if (needs.bias > 0) operation.bias = keep(needs.bias, Type::f32, 0.1f);
    if (needs.scales > 0) operation.scales = keep(needs.scales, Type::f32, 1e-3f);
    file_.operations.push_back(operation);
    return operation.output;
}

// Random weights of a type; the place where they begin.
uint64_t Builder::keep(uint64_t bytes, Type type, float deviation) {
    std::vector<uint8_t>& weights = file_.weights;
    const uint64_t begin = weights.size();
    weights.resize(begin + (bytes + 63) / 64 * 64);
    for (uint64_t at = 0; at < bytes; at += 4) {
        const float number = random_.around_zero(deviation);
        uint32_t bits;
        std::memcpy(&bits, &number, 4);
        if (type == Type::bf16) bits = (bits >> 16) * 0x00010001u;
        if (type == Type::s8) bits = static_cast<uint32_t>(random_.bits());
        std::memcpy(weights.data() + begin + at, &bits, 4);
    }
    return begin;
}

}  // namespace pyflow::testing
