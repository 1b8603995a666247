// What follows from an operation's record and its tensors.
#pragma once

#include "graph.hpp"

namespace pyflow::network {

constexpr uint32_t kWaves = 64;  // of one time

const char* name_of(Type type);
const char* name_of(Kind kind);
const char* name_of(Algorithm algorithm);

// The outputs that Winograd's algorithm makes together.
struct Tile {
    uint32_t height, width;

    uint32_t positions() const { return (height + 2) * (width + 2); }
};

Tile tile_of(Algorithm algorithm);

// Whether the file holds the weights of every position, and not the nine taps that they are made of.
bool holds_positions(Algorithm algorithm, Type weights);

struct Shape {
    uint32_t height, width, channels;
    Type type;

    bool operator==(const Shape& other) const;
    std::string text() const;  // 32x32x64 f32
};

Shape shape_of(const Graph& graph, uint32_t tensor);

// The bytes that an operation reads of the weights.
struct Needs {
    uint64_t weights = 0, bias = 0, scales = 0;
};

Needs needs_of(const Graph& graph, const Operation& operation);

// Multiplications and additions of one picture, those of direct convolutions whatever the algorithm.
double arithmetic(const Graph& graph, const Operation& operation);

[[noreturn]] void refuse(const std::string& what, const std::string& came, const std::string& expected);

// The second half of parse: tables and operations of any values, but for their number.
void check(const Graph& graph);

}  // namespace pyflow::network
