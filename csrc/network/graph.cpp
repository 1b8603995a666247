#include "graph.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "../errors.hpp"
#include "operations.hpp"

namespace pyflow::network {

namespace {

constexpr char kMagic[8] = {'p', 'y', 'f', 'l', 'o', 'w', '\0', 'n'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kMostRecords = 65536, kMostChannels = 65536, kMostSide = 4096, kMostClasses = 1u << 24;

uint64_t rounded_up(uint64_t size, uint64_t to) { return (size + to - 1) / to * to; }

uint64_t panel_channels(uint64_t outputs) {
    const uint64_t left = outputs % kPanel;
    return outputs - left + rounded_up(left, left <= kNarrowPanel ? kNarrowPanel : kPanel);
}

void in(const char* what, uint64_t came, uint64_t least, uint64_t most) {
    if (came >= least && came <= most) return;
    const std::string range = least == most ? "" : std::to_string(least) + " to ";
    refuse(what, std::to_string(came), range + std::to_string(most));
}

void check_header(const Header& header, uint64_t size) {
    if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
        refuse("its beginning", "not that of a network", "\"pyflow\"");
    in("its version", header.version, kVersion, kVersion);
    in("the number of buffers", header.buffers, 1, kMostRecords);
    in("the number of tensors", header.tensors, 1, kMostRecords);
    in("the number of operations", header.operations, 1, kMostRecords);
    in("the state's channels", header.channels, 1, kMostChannels);
    in("the state's height", header.height, 1, header.points == 1 ? 1 : kMostSide);
    in("the state's width", header.width, 1, header.points == 1 ? 1 : kMostSide);
    in("the number of times", header.times, 1, 2);
    in("the number of classes", header.classes, 0, kMostClasses);
    in("points", header.points, 0, 1);
    const uint64_t tables = sizeof(Header) + header.buffers * uint64_t{sizeof(Buffer)} +
                            header.tensors * uint64_t{sizeof(Tensor)} + header.operations * uint64_t{sizeof(Operation)};
    in("where the weights begin", header.weights_offset, tables, size);
    if (header.weights_offset % 64 != 0)
        refuse("where the weights begin", std::to_string(header.weights_offset), "a multiple of 64");
    const uint64_t left = size - header.weights_offset;
    in("the number of bytes of weights", header.weights_bytes, left, left);
}

template <class Record>
std::vector<Record> records(const uint8_t*& from, uint32_t count) {
    std::vector<Record> read(count);
    std::memcpy(read.data(), from, count * sizeof(Record));
    from += count * sizeof(Record);
    return read;
}

std::string what_it_does(const Graph& graph, const Operation& operation) {
    std::string text;
    const auto add = [&](bool holds, const std::string& part) {
        if (holds) text += (text.empty() ? "" : " ") + part;
    };
    const auto number = [](uint32_t value) { return std::to_string(value); };
    switch (operation.kind) {
        case Kind::load:
            add(true, "from NCHW");
            add(graph.extra > 0, "with " + number(graph.extra) + " told");
            return text;
        case Kind::store:
            return "to NCHW";
        case Kind::waves:
            return "of " + number(graph.header.times) + (graph.header.times == 1 ? " time" : " times");
        case Kind::label:
            return "of " + number(graph.header.classes) + " classes and none";
        case Kind::attend:
            return "of " + number(operation.heads) + (operation.heads == 1 ? " head " : " heads ") +
                   name_of(operation.weights_type);
        case Kind::prepare:
            add(operation.groups > 0, "norm " + number(operation.groups));
            add(operation.other != kNone, "+film");
            add(operation.silu, "+silu");
            add(operation.upsample > 1, "upsample " + number(operation.upsample));
            return text.empty() ? "copy" : text;
        case Kind::convolve:
            add(true, operation.taps == 1 ? "1x1" : "3x3");
            add(operation.stride > 1, "stride " + number(operation.stride));
            add(operation.taps > 1, name_of(operation.algorithm));
            add(true, name_of(operation.weights_type));
            add(operation.other != kNone, "+other");
            add(operation.silu, "+silu");
            return text;
    }
    return text;
}

using Line = std::vector<std::string>;

std::string table(const std::vector<Line>& lines) {
    std::vector<size_t> widths(lines.front().size());
    for (const Line& line : lines)
        for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
    std::string text;
    for (const Line& line : lines) {
        for (size_t i = 0; i < line.size(); ++i) {
            const std::string gap(widths[i] - line[i].size(), ' ');
            const bool counts = i == 0 || i + 1 == line.size();  // to the right
            text += (i ? "  " : "") + (counts ? gap + line[i] : line[i] + gap);
        }
        text += "\n";
    }
    return text;
}

}  // namespace

const char* name_of(Type type) {
    static const char* const names[] = {"f32", "bf16", "u8", "s8"};
    return names[static_cast<size_t>(type)];
}

const char* name_of(Kind kind) {
    static const char* const names[] = {"load", "waves", "label", "prepare", "convolve", "attend", "store"};
    return names[static_cast<size_t>(kind)];
}

const char* name_of(Algorithm algorithm) {
    static const char* const names[] = {"direct", "winograd2", "winograd4", "winograd2x4"};
    return names[static_cast<size_t>(algorithm)];
}

Tile tile_of(Algorithm algorithm) {
    static constexpr Tile tiles[] = {{1, 1}, {2, 2}, {4, 4}, {2, 4}};
    return tiles[static_cast<size_t>(algorithm)];
}

bool holds_positions(Algorithm algorithm, Type weights) {
    return algorithm == Algorithm::winograd2 && weights == Type::bf16;
}

bool Shape::operator==(const Shape& other) const {
    return height == other.height && width == other.width && channels == other.channels && type == other.type;
}

std::string Shape::text() const {
    return std::to_string(height) + "x" + std::to_string(width) + "x" + std::to_string(channels) + " " + name_of(type);
}

Shape shape_of(const Graph& graph, uint32_t tensor) {
    const Buffer& buffer = graph.buffer_of(tensor);
    return {buffer.height, buffer.width, graph.tensors[tensor].channels, buffer.type};
}

uint64_t packed_bytes(const Operation& operation, int64_t inputs, int64_t outputs) {
    const bool transformed = holds_positions(operation.algorithm, operation.weights_type);
    const uint64_t positions = transformed ? tile_of(operation.algorithm).positions() : operation.taps * operation.taps;
    const uint64_t together = operation.weights_type == Type::f32 ? 1 : operation.weights_type == Type::bf16 ? 2 : 4;
    // of a row of one to four numbers: four bytes a column, whatever their type
    const uint64_t rows = rounded_up(static_cast<uint64_t>(inputs), together) / together;
    return panel_channels(static_cast<uint64_t>(outputs)) * positions * rows * 4;
}

Needs needs_of(const Graph& graph, const Operation& operation) {
    const auto floats = [](uint64_t count) { return count * sizeof(float); };
    const auto channels = [&](uint32_t tensor) { return uint64_t{graph.tensors[tensor].channels}; };
    Needs needs;
    if (operation.kind == Kind::waves) {
        needs.weights = needs.bias = floats(kWaves);
    } else if (operation.kind == Kind::label) {
        needs.weights = floats((uint64_t{graph.header.classes} + 1) * channels(operation.output));
    } else if (operation.kind == Kind::prepare && operation.groups > 0) {
        needs.weights = needs.bias = floats(channels(operation.input));
    } else if (operation.kind == Kind::convolve) {
        const uint64_t outputs = channels(operation.output);
        needs.weights = packed_bytes(operation, channels(operation.input), outputs);
        needs.bias = floats(panel_channels(outputs));
        if (operation.weights_type == Type::s8) needs.scales = needs.bias;
    }
    return needs;
}

double arithmetic(const Graph& graph, const Operation& operation) {
    if (operation.kind != Kind::convolve && operation.kind != Kind::attend) return 0.0;
    const Shape input = shape_of(graph, operation.input), output = shape_of(graph, operation.output);
    const double pixels = double{1} * output.height * output.width, taps = operation.taps;
    if (operation.kind == Kind::convolve) return 2 * pixels * output.channels * input.channels * taps * taps;
    return 4 * pixels * pixels * output.channels;
}

void refuse(const std::string& what, const std::string& came, const std::string& expected) {
    throw InvalidArtefact("network.bin: " + what + " is " + came + "; expected " + expected + "; export it again");
}

Graph parse(const void* bytes, size_t size) {
    const auto* from = static_cast<const uint8_t*>(bytes);
    Graph graph;
    if (size < sizeof(Header))
        refuse("its size", std::to_string(size) + " bytes", "at least " + std::to_string(sizeof(Header)));
    std::memcpy(&graph.header, from, sizeof(Header));
    check_header(graph.header, size);
    graph.weights = from + graph.header.weights_offset;
    from += sizeof(Header);
    graph.buffers = records<Buffer>(from, graph.header.buffers);
    graph.tensors = records<Tensor>(from, graph.header.tensors);
    graph.operations = records<Operation>(from, graph.header.operations);
    check(graph);
    const auto is_load = [](const Operation& operation) { return operation.kind == Kind::load; };
    const auto load = std::find_if(graph.operations.begin(), graph.operations.end(), is_load);
    graph.extra = graph.tensors[load->output].channels - graph.header.channels;
    return graph;
}

std::string describe(const Graph& graph) {
    std::vector<Line> lines = {{"", "name", "kind", "input", "output", "what", "bytes"}};
    uint64_t bytes = 0;
    double sum = 0.0;
    for (const Operation& operation : graph.operations) {
        const auto shape = [&](uint32_t tensor) {
            return tensor == kNone ? std::string() : shape_of(graph, tensor).text();
        };
        const Needs needs = needs_of(graph, operation);
        const uint64_t own = needs.weights + needs.bias + needs.scales;
        lines.push_back({std::to_string(lines.size() - 1), operation.name, name_of(operation.kind),
                         shape(operation.input), shape(operation.output), what_it_does(graph, operation),
                         own ? std::to_string(own) : ""});
        bytes += own;
        sum += arithmetic(graph, operation);
    }
    char total[128];
    std::snprintf(total, sizeof total, "%zu operations, %.2f MB of weights, %.3f GFLOP a picture\n",
                  graph.operations.size(), static_cast<double>(bytes) * 1e-6, sum * 1e-9);
    return table(lines) + total;
}

}  // namespace pyflow::network
