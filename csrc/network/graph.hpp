// What a native network is: a list of operations over tensors, read from the bytes of an engine's network.bin.
//
// The file, little-endian: a Header, then its buffers, tensors and operations, then at `weights_offset` (a multiple of
// 64) the weights, which operations name by their byte offset from there. pyflow/engines/graph.py writes the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pyflow::network {

enum class Type : uint32_t { f32, bf16, u8, s8 };  // s8 is of weights only
enum class Kind : uint32_t { load, waves, label, prepare, convolve, attend, store };
// How a 3x3 convolution of stride 1 is computed; everything else is direct.
enum class Algorithm : uint32_t { direct, winograd2, winograd4, winograd2x4 };  // tiles of 2x2, 4x4, 2 rows by 4

constexpr uint32_t kNone = 0xffffffff;         // no such tensor
constexpr uint64_t kNoWeights = ~uint64_t{0};  // no such weights
constexpr int64_t kPanel = 32;                 // output channels of a panel of packed weights; the last may have 16
constexpr int64_t kNarrowPanel = 16;

// The memory of one activation: NHWC, `border` pixels of padding on each side of each picture, for one picture.
struct Buffer {
    uint32_t height, width, channels, border;
    Type type;

    int64_t row() const { return int64_t{channels} * (width + 2 * border); }  // elements from one row to the next
    int64_t picture() const { return row() * (height + 2 * border); }         // elements of one picture
};

// Channels of a buffer: two tensors side by side in one buffer are a concatenation that nobody has to make.
struct Tensor {
    uint32_t buffer, offset, channels;
};

// What each kind reads:
//   load      output <- x, from NCHW: the state, and behind its channels those that the network is told beside it; the
//             output's buffer is f32 with any border (zeros)
//   waves     output (64 a time) <- sin(time * waves + phases); weights: waves[64], phases at `bias`[64]
//   label     output <- row `label` of the table at `weights`, (classes+1, channels)
//   prepare   output <- cast(upsample(silu?(film?(norm?(input))))), borders zero (the `zero` of a u8 output)
//             norm when groups > 0: `weights` gamma[channels], `bias` beta[channels], `epsilon`
//             film when other is a tensor: y*(1+scale)+shift, scale = other[film_offset + c], shift = scale's +
//             channels u8: clamp(round(y / scale) + zero, 0, 255)
//   convolve  output (f32) <- act(taps x taps convolution of input + bias + other); input's type says the arithmetic
//             (of winograd the weights' type, f32 or bf16; its input is f32). A linear layer is a 1x1 convolution of a
//             1x1 picture. int8: out = sum * scales[c] + bias[c], the input's zero point being folded into bias by the
//             exporter
//   attend    output (f32, channels) <- attention over all pixels of the input (f32, 3*channels: q, k, v; each of
//   `heads`);
//             its products in `weights_type`, f32 or bf16
//   store     the prediction, NCHW <- input
struct Operation {
    Kind kind;
    uint32_t input, other, output;
    uint32_t taps, stride;  // 1 or 3; 1 or 2
    Algorithm algorithm;
    Type weights_type;
    uint32_t silu, groups, upsample, heads, film_offset;
    float epsilon, scale;
    uint32_t zero;
    uint64_t weights, bias, scales;
    char name[40];  // of the layer, for people; ends in a zero byte
};
static_assert(sizeof(Operation) == 128, "the file's record");

struct Header {
    char magic[8];  // "pyflow\0n"
    uint32_t version, buffers, tensors, operations;
    uint32_t channels, height, width;  // of the state; a point of d dimensions has (d, 1, 1)
    uint32_t times, classes, points;   // points: 1 when the shape is (channels,)
    uint64_t weights_offset, weights_bytes;
};
static_assert(sizeof(Header) == 64, "the file's record");

// A checked network. `weights` points into the file's bytes, which outlive it; `extra` are the channels that it is told
// beside the state.
struct Graph {
    Header header{};
    std::vector<Buffer> buffers;
    std::vector<Tensor> tensors;
    std::vector<Operation> operations;
    const uint8_t* weights = nullptr;
    uint32_t extra = 0;

    const Buffer& buffer_of(uint32_t tensor) const { return buffers[tensors[tensor].buffer]; }
    template <class Number>
    const Number* at(uint64_t offset) const {
        return offset == kNoWeights ? nullptr : reinterpret_cast<const Number*>(weights + offset);
    }
};

// Every size, index, offset and type is checked here, so that no kernel has to: InvalidArtefact says what is wrong.
Graph parse(const void* bytes, size_t size);

// A line an operation, for people.
std::string describe(const Graph& graph);

// Bytes of the packed weights of a convolve, by its algorithm and types.
uint64_t packed_bytes(const Operation& operation, int64_t inputs, int64_t outputs);

}  // namespace pyflow::network
