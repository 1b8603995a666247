#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <map>

#include "../errors.hpp"
#include "memory.hpp"
#include "operations.hpp"

namespace pyflow::network {

namespace {

constexpr uint32_t kMostChannels = 65536, kMostSide = 4096, kMostBorder = 8;
constexpr uint64_t kMostActivations = uint64_t{4} << 30;  // bytes of one picture
constexpr uint32_t kMostProducts = 65536;                 // of 255 * 127 each

template <class Number>
std::string text_of(Number number) {
    return std::to_string(number);
}
std::string text_of(float number) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", static_cast<double>(number));
    return text;
}
std::string text_of(const char* text) { return text; }
std::string text_of(const std::string& text) { return text; }

bool printable(char letter) { return letter >= ' ' && letter <= '~'; }

// Follows the operations in order, and keeps what was written of each buffer.
class Checker {
  public:
    explicit Checker(const Graph& graph) : graph_(graph), written_(graph.buffers.size()) {}

    void check_tables() const {
        uint64_t activations = 0;
        for (size_t i = 0; i < graph_.buffers.size(); ++i) {
            const Buffer& buffer = graph_.buffers[i];
            const std::string name = "buffer " + text_of(i) + "'s ";
            in(name + "height", buffer.height, 1, kMostSide);
            in(name + "width", buffer.width, 1, kMostSide);
            in(name + "channels", buffer.channels, 1, kMostChannels);
            in(name + "border", buffer.border, 0, kMostBorder);
            in(name + "type", static_cast<uint32_t>(buffer.type), 0, static_cast<uint32_t>(Type::u8));
            activations += static_cast<uint64_t>(bytes_of(buffer));
        }
        if (activations > kMostActivations)
            refuse("the activations of one picture", text_of(activations) + " bytes",
                   "at most " + text_of(kMostActivations));
        for (size_t i = 0; i < graph_.tensors.size(); ++i) {
            const Tensor& tensor = graph_.tensors[i];
            const std::string name = "tensor " + text_of(i) + "'s ";
            in(name + "buffer", tensor.buffer, 0, static_cast<uint32_t>(graph_.buffers.size()) - 1);
            const uint32_t channels = graph_.buffers[tensor.buffer].channels;
            in(name + "channels", tensor.channels, 1, channels);
            in(name + "offset", tensor.offset, 0, channels - tensor.channels);
        }
    }

    void check_operations() {
        size_t loads = 0;
        for (index_ = 0; index_ < graph_.operations.size(); ++index_) {
            const Operation& operation = graph_.operations[index_];
            check_fields(operation);
            check_kind(operation);
            const bool last = index_ + 1 == graph_.operations.size();
            if (last != (operation.kind == Kind::store))
                refuse(what("kind"), name_of(operation.kind),
                       last ? "store, it is the last" : "another, only the last one is a store");
            loads += operation.kind == Kind::load;
        }
        if (loads != 1) refuse("the number of loads", text_of(loads), "1");
    }

  private:
    struct Written {
        std::map<uint32_t, uint32_t> channels;  // from the first one to the one behind the last
        bool of_conditions = false;
        bool bordered = true;
    };

    static void in(const std::string& what, uint32_t came, uint32_t least, uint32_t most) {
        if (came < least || came > most) refuse(what, text_of(came), text_of(least) + " to " + text_of(most));
    }

    std::string what(const char* field) const {
        const Operation& operation = graph_.operations[index_];
        const char* end = std::find_if_not(std::begin(operation.name), std::end(operation.name), printable);
        return "operation " + text_of(index_) + " (" + std::string(operation.name, end) + "): " + field;
    }

    template <class Came>
    void expect(bool holds, const char* field, const Came& came, const char* expected) const {
        if (!holds) refuse(what(field), text_of(came), expected);
    }

    void expect_shape(const char* field, uint32_t tensor, const Shape& expected) const {
        const Shape came = shape_of(graph_, tensor);
        if (!(came == expected)) refuse(what(field), came.text(), expected.text());
    }

    void expect_tensor(const char* field, uint32_t tensor, bool needed) const {
        if (!needed)
            expect(tensor == kNone, field, "tensor " + text_of(tensor), "none");
        else if (tensor >= graph_.tensors.size())
            refuse(what(field), tensor == kNone ? "none" : "tensor " + text_of(tensor),
                   "one of " + text_of(graph_.tensors.size()) + " tensors");
    }

    void expect_weights(const char* field, uint64_t offset, uint64_t bytes) const {
        const uint64_t most = graph_.header.weights_bytes;
        if (bytes == 0)
            expect(offset == kNoWeights, field, "at " + text_of(offset), "none");
        else if (offset % 64 != 0 || offset > most || bytes > most - offset)
            refuse(what(field), offset == kNoWeights ? "none" : "at " + text_of(offset),
                   "a multiple of 64 with " + text_of(bytes) + " bytes behind it, of " + text_of(most));
    }

    void check_fields(const Operation& operation) const {
        const char* end = std::find(std::begin(operation.name), std::end(operation.name), '\0');
        expect(end != std::end(operation.name) && std::all_of(std::begin(operation.name), end, printable), "name",
               "not text", "printable letters and a zero byte");
        const auto kind = static_cast<uint32_t>(operation.kind);
        expect(kind <= static_cast<uint32_t>(Kind::store), "kind", kind, "0 to 6");
        const Kind is = operation.kind;
        const bool computes = is == Kind::prepare || is == Kind::convolve;
        expect_tensor("input", operation.input, computes || is == Kind::attend || is == Kind::store);
        expect_tensor("other", operation.other, computes && operation.other != kNone);
        expect_tensor("output", operation.output, is != Kind::store);
        expect(operation.silu <= 1, "silu", operation.silu, "0 or 1");
        if (is == Kind::convolve) check_arithmetic(operation);
        const Needs needs = needs_of(graph_, operation);
        expect_weights("weights", operation.weights, needs.weights);
        expect_weights("bias", operation.bias, needs.bias);
        expect_weights("scales", operation.scales, needs.scales);
    }

    void check_arithmetic(const Operation& operation) const {
        const auto algorithm = static_cast<uint32_t>(operation.algorithm);
        expect(algorithm <= static_cast<uint32_t>(Algorithm::winograd2x4), "algorithm", algorithm, "0 to 3");
        expect(operation.taps == 1 || operation.taps == 3, "taps", operation.taps, "1 or 3");
        expect(operation.stride == 1 || (operation.stride == 2 && operation.taps == 3), "stride", operation.stride,
               "1, or 2 with 3 taps");
        const Shape input = shape_of(graph_, operation.input);
        const auto weights = static_cast<uint32_t>(operation.weights_type);
        expect(weights <= static_cast<uint32_t>(Type::s8), "weights' type", weights, "0 to 3");
        Type fits = input.type == Type::u8 ? Type::s8 : input.type;
        if (operation.algorithm != Algorithm::direct && operation.weights_type == Type::bf16) fits = Type::bf16;
        expect(operation.weights_type == fits, "weights' type", name_of(operation.weights_type), name_of(fits));
        if (input.type == Type::u8)
            expect(operation.taps * operation.taps * input.channels <= kMostProducts, "input", input.text(),
                   "at most 65536 products in a sum, which is of 32 bits");
        if (operation.algorithm == Algorithm::direct) return;
        expect(operation.taps == 3 && operation.stride == 1, "algorithm", name_of(operation.algorithm),
               "direct, it is not 3x3 of stride 1");
        expect(input.type == Type::f32, "input", input.text(), "f32 for winograd");
        expect(operation.weights_type != Type::bf16 || input.channels % 2 == 0, "input", input.text(),
               "its channels in pairs, for bf16");
        const Tile tile = tile_of(operation.algorithm);
        if (input.height % tile.height != 0 || input.width % tile.width != 0)
            refuse(what("input"), input.text(),
                   "height in multiples of " + text_of(tile.height) + " and width of " + text_of(tile.width));
    }

    void check_kind(const Operation& operation) {
        const Header& state = graph_.header;
        switch (operation.kind) {
            case Kind::load:
                expect_shape("output", operation.output, {state.height, state.width, loaded(operation), Type::f32});
                return write(operation, false);
            case Kind::waves:
                expect_shape("output", operation.output, {1, 1, kWaves * state.times, Type::f32});
                return write(operation, true);
            case Kind::label:
                expect(state.classes > 0, "classes", state.classes, "1 or more, it reads a label");
                expect_shape("output", operation.output, {1, 1, graph_.tensors[operation.output].channels, Type::f32});
                return write(operation, true);
            case Kind::prepare:
                check_prepare(operation);
                break;
            case Kind::convolve:
                check_convolve(operation);
                break;
            case Kind::attend:
                check_attend(operation);
                break;
            case Kind::store:
                expect_shape("input", operation.input, {state.height, state.width, state.channels, Type::f32});
                expect(!read("input", operation.input), "input", "of conditions", "of pictures");
                return;
        }
        const bool of_conditions = read("input", operation.input);
        if (operation.other != kNone) {
            const bool other = read("other", operation.other);
            expect(other || !of_conditions, "other", "of pictures", "of conditions, as the input is");
            expect(other || operation.kind != Kind::prepare, "other", "of pictures", "of conditions");
            expect(!of_conditions || operation.kind != Kind::prepare, "input", "of conditions",
                   "of pictures, for film");
        }
        write(operation, of_conditions);
    }

    // The state's channels, and any that are told beside it.
    uint32_t loaded(const Operation& operation) const {
        return std::max(graph_.header.channels, graph_.tensors[operation.output].channels);
    }

    void check_prepare(const Operation& operation) const {
        const Shape input = shape_of(graph_, operation.input), output = shape_of(graph_, operation.output);
        const uint32_t upsample = operation.upsample;
        expect(upsample == 1 || upsample == 2, "upsample", upsample, "1 or 2");
        expect_shape("input", operation.input, {input.height, input.width, input.channels, Type::f32});
        expect_shape("output", operation.output,
                     {upsample * input.height, upsample * input.width, input.channels, output.type});
        if (operation.groups > 0) {
            if (input.channels % operation.groups != 0)
                refuse(what("groups"), text_of(operation.groups), "a divisor of " + text_of(input.channels));
            expect(std::isfinite(operation.epsilon) && operation.epsilon > 0, "epsilon", operation.epsilon,
                   "finite and above 0");
        }
        if (output.type == Type::u8) {
            expect(std::isfinite(operation.scale) && operation.scale > 0, "scale", operation.scale,
                   "finite and above 0");
            expect(operation.zero <= 255, "zero", operation.zero, "0 to 255");
        }
        if (operation.other == kNone) return;
        const Shape film = shape_of(graph_, operation.other);
        expect_shape("other", operation.other, {1, 1, film.channels, Type::f32});
        if (uint64_t{operation.film_offset} + 2 * uint64_t{input.channels} > film.channels)
            refuse(what("film_offset"), text_of(operation.film_offset),
                   "twice " + text_of(input.channels) + " channels behind it, of " + text_of(film.channels));
    }

    void check_convolve(const Operation& operation) const {
        const Shape input = shape_of(graph_, operation.input);
        const uint32_t outputs = graph_.tensors[operation.output].channels, stride = operation.stride;
        const Shape made = {(input.height - 1) / stride + 1, (input.width - 1) / stride + 1, outputs, Type::f32};
        expect_shape("output", operation.output, made);
        if (operation.other != kNone) expect_shape("other", operation.other, made);
        const Buffer& buffer = graph_.buffer_of(operation.input);
        const bool whole = input.channels == buffer.channels;
        if (input.type != Type::f32)
            expect(whole && buffer.channels % 4 == 0, "input", input.text(), "a whole buffer, its channels in fours");
        if (operation.taps == 1) return expect(buffer.border <= 1, "input's border", buffer.border, "0 or 1");
        expect(whole && buffer.border == 1, "input's border", buffer.border, "1, around a whole buffer");
        expect(written_[graph_.tensors[operation.input].buffer].bordered, "input", "without a border",
               "made by load or prepare alone, which write zeros there");
    }

    void check_attend(const Operation& operation) const {
        const Shape output = shape_of(graph_, operation.output);
        expect_shape("output", operation.output, {output.height, output.width, output.channels, Type::f32});
        expect_shape("input", operation.input, {output.height, output.width, 3 * output.channels, Type::f32});
        if (operation.heads == 0 || output.channels % operation.heads != 0)
            refuse(what("heads"), text_of(operation.heads), "a divisor of " + text_of(output.channels));
        const Type products = operation.weights_type;
        expect(products == Type::f32 || products == Type::bf16, "products", static_cast<uint32_t>(products),
               "f32 or bf16");
        const bool pairs = output.height * output.width % 2 == 0 && output.channels / operation.heads % 2 == 0;
        expect(pairs || products == Type::f32, "output", output.text(),
               "pixels and a head's channels in pairs, for bf16");
    }

    // Whether the tensor is of conditions.
    bool read(const char* field, uint32_t index) const {
        const Tensor& tensor = graph_.tensors[index];
        const Written& written = written_[tensor.buffer];
        const auto next = written.channels.upper_bound(tensor.offset);
        if (next == written.channels.begin() || std::prev(next)->second < tensor.offset + tensor.channels)
            refuse(what(field), "tensor " + text_of(index), "one that the operations before have written");
        return written.of_conditions;
    }

    void write(const Operation& operation, bool of_conditions) {
        const Tensor& tensor = graph_.tensors[operation.output];
        Written& written = written_[tensor.buffer];
        if (of_conditions)
            expect_shape("output", operation.output, {1, 1, tensor.channels, graph_.buffer_of(operation.output).type});
        uint32_t begin = tensor.offset, end = tensor.offset + tensor.channels;
        const auto next = written.channels.lower_bound(begin);
        const bool free = (next == written.channels.end() || next->first >= end) &&
                          (next == written.channels.begin() || std::prev(next)->second <= begin);
        if (!free)
            refuse(what("output"), "tensor " + text_of(operation.output),
                   "one of whose channels no operation before has written any");
        expect(written.channels.empty() || written.of_conditions == of_conditions, "output",
               "beside others in its buffer", "all of conditions or all of pictures");
        written.of_conditions = of_conditions;
        written.bordered = written.bordered && (operation.kind == Kind::load || operation.kind == Kind::prepare);
        if (next != written.channels.begin() && std::prev(next)->second == begin) begin = std::prev(next)->first;
        if (next != written.channels.end() && next->first == end) {
            end = next->second;
            written.channels.erase(next);
        }
        written.channels[begin] = end;
    }

    const Graph& graph_;
    std::vector<Written> written_;
    size_t index_ = 0;
};

}  // namespace

void check(const Graph& graph) {
    Checker checker(graph);
    checker.check_tables();
    checker.check_operations();
}

}  // namespace pyflow::network
