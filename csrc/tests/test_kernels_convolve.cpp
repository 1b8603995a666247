// Convolutions of every algorithm, type and level against sums in double, by definition.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "../isa.hpp"
#include "../network/kernels.hpp"
#include "../network/operations.hpp"

using namespace pyflow;
using namespace pyflow::network;

namespace {

std::mt19937 random_bits(std::random_device{}());
int failures = 0;

int64_t one_of(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_bits); }
float gaussian() { return std::normal_distribution<float>()(random_bits); }

uint16_t bf16_of(double value) {
    const auto rounded = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &rounded, 4);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float float_of(uint16_t half) {
    const uint32_t bits = uint32_t{half} << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// What bfloat16 in a transform may cost, of the largest value: direct sums round nothing.
constexpr double kRounded[] = {0.0, 1.5e-2, 4e-2, 2.5e-2};

struct Case {
    int64_t pictures, height, width, inputs, outputs, taps, stride;
    Algorithm algorithm;
    Type input, weights;
    bool silu, other, condition;
};

int64_t bytes_of(Type type) { return type == Type::f32 ? 4 : type == Type::bf16 ? 2 : 1; }
int64_t padded(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// The operands of a case, random, in layouts with pixels wider than their channels; whatever no kernel may read is NaN.
struct Operands {
    explicit Operands(const Case& c)
        : of(c),
          border(c.taps == 3 ? 1 : one_of(0, 1)),
          across(c.width * c.stride + 2 * border),
          down(c.height * c.stride + 2 * border),
          pixel(c.input == Type::f32 ? c.inputs + (c.taps == 1 ? one_of(0, 5) : 0) : padded(c.inputs, 4)),
          input(c.pictures * down * across * pixel, 0.0),
          raw(c.outputs * c.inputs * c.taps * c.taps),
          bias(padded(c.outputs, kPanel), 0.0f),
          scales(padded(c.outputs, kPanel), 0.0f),
          other(c.pictures * c.height * c.width * c.outputs),
          condition(c.pictures) {
        for (int64_t n = 0; n < c.pictures; ++n)
            for (int64_t y = 0; y < down - 2 * border; ++y)
                for (int64_t x = 0; x < across - 2 * border; ++x)
                    for (int64_t k = 0; k < c.inputs; ++k) {
                        const float value = gaussian();
                        input[index(n, y, x, k)] = c.input == Type::u8     ? static_cast<double>(one_of(0, 255))
                                                   : c.input == Type::bf16 ? float_of(bf16_of(value))
                                                                           : value;
                    }
        for (double& weight : raw) {
            const double value = gaussian() / std::sqrt(double(c.inputs * c.taps * c.taps));
            weight = c.weights == Type::s8 ? static_cast<double>(one_of(-127, 127)) : static_cast<float>(value);
        }
        for (int64_t j = 0; j < c.outputs; ++j) bias[j] = gaussian(), scales[j] = 0.001f * gaussian();
        for (float& value : other) value = gaussian();
        for (int32_t& which : condition) which = static_cast<int32_t>(one_of(0, c.pictures - 1));
    }

    int64_t index(int64_t n, int64_t y, int64_t x, int64_t k) const {
        return ((n * down + y + border) * across + x + border) * pixel + k;
    }

    double weight(int64_t out, int64_t in, int64_t tap) const {
        return in < of.inputs && out < of.outputs ? raw[(out * of.inputs + in) * of.taps * of.taps + tap] : 0.0;
    }

    std::vector<uint8_t> packed() const {
        static constexpr double g[4][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};
        const bool transformed = holds_positions(of.algorithm, of.weights);
        const int64_t positions = transformed ? tile_of(of.algorithm).positions() : of.taps * of.taps,
                      q = 4 / bytes_of(of.weights);
        std::vector<uint8_t> made;
        for (int64_t panel = 0; panel < of.outputs; panel += kPanel) {
            const int64_t width = of.outputs - panel > kNarrowPanel ? kPanel : kNarrowPanel;
            for (int64_t p = 0; p < positions; ++p)
                for (int64_t in = 0; in < of.inputs; in += q)
                    for (int64_t j = 0; j < width; ++j)
                        for (int64_t i = in; i < in + q; ++i) {
                            double value = transformed ? 0.0 : weight(panel + j, i, p);
                            for (int64_t tap = 0; transformed && tap < 9; ++tap)
                                value += g[p / 4][tap / 3] * weight(panel + j, i, tap) * g[p % 4][tap % 3];
                            append(made, value);
                        }
        }
        return made;
    }

    void append(std::vector<uint8_t>& to, double value) const {
        const auto single = static_cast<float>(value);
        const uint16_t half = bf16_of(value);
        const auto whole = static_cast<int8_t>(value);
        const void* from = of.weights == Type::f32    ? static_cast<const void*>(&single)
                           : of.weights == Type::bf16 ? static_cast<const void*>(&half)
                                                      : static_cast<const void*>(&whole);
        const auto* begin = static_cast<const uint8_t*>(from);
        to.insert(to.end(), begin, begin + bytes_of(of.weights));
    }

    std::vector<uint8_t> input_bytes() const {
        std::vector<uint8_t> made(input.size() * bytes_of(of.input));
        for (size_t i = 0; i < input.size(); ++i) {
            const auto single = static_cast<float>(input[i]);
            const uint16_t half = bf16_of(input[i]);
            const auto whole = static_cast<uint8_t>(input[i]);
            const void* from = of.input == Type::f32    ? static_cast<const void*>(&single)
                               : of.input == Type::bf16 ? static_cast<const void*>(&half)
                                                        : static_cast<const void*>(&whole);
            std::memcpy(made.data() + i * bytes_of(of.input), from, bytes_of(of.input));
        }
        return made;
    }

    double expected(int64_t n, int64_t y, int64_t x, int64_t out) const {
        double sum = 0.0;
        for (int64_t tap = 0; tap < of.taps * of.taps; ++tap)
            for (int64_t in = 0; in < of.inputs; ++in) {
                const int64_t row = y * of.stride + (of.taps == 3 ? tap / 3 - 1 : 0);
                const int64_t column = x * of.stride + (of.taps == 3 ? tap % 3 - 1 : 0);
                double by = weight(out, in, tap);
                if (of.weights == Type::bf16 && !holds_positions(of.algorithm, of.weights)) by = float_of(bf16_of(by));
                sum += input[index(n, row, column, in)] * by;
            }
        if (of.weights == Type::s8) sum *= scales[out];
        sum += bias[out];
        const int64_t from = of.condition ? condition[n] : n;
        if (of.other) sum += other[((from * of.height + y) * of.width + x) * of.outputs + out];
        return of.silu ? sum / (1.0 + std::exp(-sum)) : sum;
    }

    Case of;
    int64_t border, across, down, pixel;
    std::vector<double> input, raw;
    std::vector<float> bias, scales, other;
    std::vector<int32_t> condition;
};

std::vector<float> run(const Case& c, const Operands& given, Isa isa, int64_t first, int64_t count) {
    const std::vector<uint8_t> input = given.input_bytes(), weights = given.packed();
    std::vector<float> output(count * c.height * c.width * c.outputs, std::numeric_limits<float>::quiet_NaN());
    Graph graph;
    graph.buffers = {{uint32_t(c.height * c.stride), uint32_t(c.width * c.stride), uint32_t(given.pixel), 1, c.input},
                     {uint32_t(c.height), uint32_t(c.width), uint32_t(c.outputs), 0, Type::f32}};
    graph.tensors = {{0, 0, uint32_t(c.inputs)}, {1, 0, uint32_t(c.outputs)}};
    Operation operation{};
    operation.input = 0, operation.output = 1;
    operation.algorithm = c.algorithm, operation.weights_type = c.weights;
    const int64_t scratch_bytes = convolve_scratch(graph, operation, count);
    std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, padded(scratch_bytes + 64, 64)),
                                                        std::free);
    std::memset(scratch.get(), 0xff, scratch_bytes);

    Convolve call{};
    const int64_t size = bytes_of(c.input), picture = given.down * given.across * given.pixel;
    call.input = {const_cast<uint8_t*>(input.data()) + (given.index(0, 0, 0, 0) + first * picture) * size,
                  c.height * c.stride,
                  c.width * c.stride,
                  c.inputs,
                  given.pixel,
                  given.across * given.pixel,
                  picture,
                  given.border,
                  c.input};
    const int64_t row = c.width * c.outputs;
    call.output = {output.data(), c.height, c.width, c.outputs, c.outputs, row, c.height * row, 0, Type::f32};
    call.other = call.output;
    const int64_t other_from = c.condition ? 0 : first * c.height * row;
    call.other.data = c.other ? const_cast<float*>(given.other.data()) + other_from : nullptr;
    call.condition = c.condition ? given.condition.data() + first : nullptr;
    call.weights = weights.data();
    call.bias = given.bias.data();
    call.scales = c.weights == Type::s8 ? given.scales.data() : nullptr;
    call.pictures = count, call.taps = c.taps, call.stride = c.stride;
    call.algorithm = c.algorithm, call.weights_type = c.weights, call.silu = c.silu;
    call.scratch = scratch.get();
    kernels(isa).convolve(call);
    return output;
}

void check(const Case& c) {
    const Operands given(c);
    const bool rounds = c.algorithm != Algorithm::direct && c.weights == Type::bf16;
    const double bound = rounds ? kRounded[static_cast<size_t>(c.algorithm)] : c.weights == Type::bf16 ? 1e-5 : 5e-6;
    for (Isa isa : supported_isas()) {
        const std::vector<float> all = run(c, given, isa, 0, c.pictures);
        double largest = 0.0, worst = 0.0;
        size_t at = 0;
        for (int64_t n = 0; n < c.pictures; ++n)
            for (int64_t y = 0; y < c.height; ++y)
                for (int64_t x = 0; x < c.width; ++x)
                    for (int64_t out = 0; out < c.outputs; ++out, ++at) {
                        const double truth = given.expected(n, y, x, out), error = std::fabs(all[at] - truth);
                        largest = std::fmax(largest, std::fabs(truth));
                        worst = error <= worst ? worst : error;  // a NaN is the worst
                    }
        const int64_t last = c.pictures - 1, picture = c.height * c.width * c.outputs;
        const std::vector<float> alone = run(c, given, isa, last, 1);
        const bool same = std::memcmp(alone.data(), all.data() + last * picture, picture * 4) == 0;
        if (worst <= bound * largest && same) continue;
        ++failures;
        std::printf("%s: %ldx%ldx%ld %ld->%ld taps %ld stride %ld algorithm %u types %u %u: error %g of %g%s\n",
                    name_of(isa), long(c.pictures), long(c.height), long(c.width), long(c.inputs), long(c.outputs),
                    long(c.taps), long(c.stride), unsigned(c.algorithm), unsigned(c.input), unsigned(c.weights), worst,
                    largest, same ? "" : ", and a picture alone differs from itself in the batch");
    }
}

}  // namespace

int main() {
    for (int round = 0; round < 12; ++round) {
        const int64_t pictures = one_of(1, 5), inputs = 4 * one_of(1, 12), outputs = one_of(1, 80);
        const bool silu = one_of(0, 1), other = one_of(0, 1);
        const auto direct = [&](int64_t height, int64_t width, int64_t taps, int64_t stride) {
            for (const auto& [input, weights] :
                 {std::pair{Type::f32, Type::f32}, {Type::bf16, Type::bf16}, {Type::u8, Type::s8}})
                check({pictures, height, width, inputs, outputs, taps, stride, Algorithm::direct, input, weights, silu,
                       other, false});
        };
        direct(one_of(1, 9), one_of(2, 17), 3, 1);
        direct(one_of(1, 5), one_of(2, 9), 3, 2);
        direct(one_of(1, 9), one_of(2, 33), 1, 1);
        direct(1, 1, 1, 1);
        check({pictures, 1, 1, inputs, outputs, 1, 1, Algorithm::direct, Type::f32, Type::f32, silu, true, true});
        check({1, 1, 1, 3, 300, 1, 1, Algorithm::direct, Type::f32, Type::f32, silu, other, false});
        for (Algorithm algorithm : {Algorithm::winograd2, Algorithm::winograd4, Algorithm::winograd2x4})
            for (Type weights : {Type::f32, Type::bf16}) {
                const Tile tile = tile_of(algorithm);
                check({pictures, tile.height * one_of(1, 6), tile.width * one_of(1, 6), inputs, outputs, 3, 1,
                       algorithm, Type::f32, weights, silu, other, false});
            }
    }
    std::printf("convolutions: %d failures\n", failures);
    return failures != 0;
}
