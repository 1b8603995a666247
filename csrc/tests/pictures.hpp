// What the tests of kernels share: pictures in guarded memory that holds poison until it is written.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "../network/kernels.hpp"
#include "testing.hpp"

namespace pyflow::testing {

using network::Graph;
using network::Operation;
using network::Type;
using network::View;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

// Memory at a multiple of 64 between two guards, all of it poison until written.
class Memory {
  public:
    explicit Memory(int64_t bytes, Type type = Type::f32) : bytes_(bytes), type_(type), all_(bytes + 3 * kGuard) {
        for (size_t i = 0; i < all_.size(); ++i) all_[i] = poison(i);
    }
    uint8_t* data() {
        const auto at = reinterpret_cast<uintptr_t>(all_.data()) + kGuard;
        return all_.data() + kGuard + (64 - at % 64) % 64;
    }
    bool poisoned(int64_t byte) { return data()[byte] == poison(static_cast<size_t>(data() + byte - all_.data())); }
    bool guarded() {
        for (int64_t byte = 1; byte <= 64; ++byte)
            if (!poisoned(-byte) || !poisoned(bytes_ - 1 + byte)) return false;
        return true;
    }

  private:
    static constexpr int64_t kGuard = 128;
    uint8_t poison(size_t at) const {
        if (type_ == Type::u8) return 0xa5;
        return (at % 4 == 3 || (type_ == Type::bf16 && at % 2 == 1)) ? 0x7f : 0xc5;
    }
    int64_t bytes_;
    Type type_;
    std::vector<uint8_t> all_;
};

inline int64_t bytes_of(Type type) { return type == Type::f32 ? 4 : type == Type::bf16 ? 2 : 1; }

// Channels of a buffer, for some pictures.
struct Pictures {
    Pictures(int64_t pictures, int64_t height, int64_t width, int64_t channels, int64_t before, int64_t behind,
             int64_t border, Type type)
        : count(pictures),
          all(before + channels + behind),
          offset(before),
          memory(pictures * (height + 2 * border) * (width + 2 * border) * all * bytes_of(type), type) {
        const int64_t row = (width + 2 * border) * all, first = border * (row + all) + before;
        view = {memory.data() + first * bytes_of(type),
                height,
                width,
                channels,
                all,
                row,
                (height + 2 * border) * row,
                border,
                type};
    }

    float& at(int64_t n, int64_t y, int64_t x, int64_t c) { return view.at<float>(n, y, x)[c]; }
    double value(int64_t n, int64_t y, int64_t x, int64_t c) const {
        if (view.type == Type::f32) return view.at<float>(n, y, x)[c];
        if (view.type == Type::u8) return view.at<uint8_t>(n, y, x)[c];
        const uint32_t bits = uint32_t{view.at<uint16_t>(n, y, x)[c]} << 16;
        float number;
        std::memcpy(&number, &bits, 4);
        return number;
    }
    void fill(const std::function<float()>& draw) {
        each([&](int64_t n, int64_t y, int64_t x, int64_t c) { at(n, y, x, c) = draw(); });
    }
    template <class Do>
    void each(Do what) const {
        for (int64_t n = 0; n < count; ++n)
            for (int64_t y = 0; y < view.height; ++y)
                for (int64_t x = 0; x < view.width; ++x)
                    for (int64_t c = 0; c < view.channels; ++c) what(n, y, x, c);
    }
    View from(int64_t n) const {
        View moved = view;
        moved.data = static_cast<uint8_t*>(view.data) + n * view.picture * bytes_of(view.type);
        return moved;
    }
    // What was written of one picture, to compare bits.
    std::vector<uint8_t> written(int64_t n) const {
        std::vector<uint8_t> bytes;
        const int64_t size = bytes_of(view.type);
        for (int64_t y = -view.border; y < view.height + view.border; ++y)
            for (int64_t x = -view.border; x < view.width + view.border; ++x) {
                const auto* pixel =
                    static_cast<const uint8_t*>(view.data) + (n * view.picture + y * view.row + x * view.pixel) * size;
                bytes.insert(bytes.end(), pixel, pixel + view.channels * size);
            }
        return bytes;
    }
    // Nothing was written but the view's channels, and its border where a kernel writes that.
    void expect_rest_untouched(bool border_too) {
        EXPECT(memory.guarded(), "written outside the buffer");
        const int64_t bytes = bytes_of(view.type), width = view.width + 2 * view.border;
        for (int64_t n = 0; n < count; ++n)
            for (int64_t y = -view.border; y < view.height + view.border; ++y)
                for (int64_t x = 0; x < width; ++x)
                    for (int64_t c = 0; c < all; ++c) {
                        const bool inside = y >= 0 && y < view.height && x >= view.border && x < width - view.border;
                        if (c >= offset && c < offset + view.channels && (inside || border_too)) continue;
                        const int64_t at = n * view.picture + (y + view.border) * view.row + x * all + c;
                        for (int64_t byte = 0; byte < bytes; ++byte)
                            EXPECT(memory.poisoned(at * bytes + byte), "written beside the view");
                    }
    }
    void expect_border(double wanted) const {
        for (int64_t n = 0; n < count; ++n)
            for (int64_t y = -view.border; y < view.height + view.border; ++y)
                for (int64_t x = -view.border; x < view.width + view.border; ++x)
                    for (int64_t c = 0; c < view.channels; ++c)
                        if (y < 0 || y >= view.height || x < 0 || x >= view.width)
                            EXPECT(value(n, y, x, c) == wanted, "border of " + std::to_string(value(n, y, x, c)));
    }

    int64_t count, all, offset;
    Memory memory;
    View view{};
};

inline std::vector<float> drawn(Random& random, int64_t size, float deviation) {
    std::vector<float> values(static_cast<size_t>(size));
    for (float& value : values) value = random.around_zero(deviation);
    return values;
}

inline Graph graph_of(const View& input, const View& output) {
    Graph graph;
    for (const View* view : {&input, &output}) {
        graph.tensors.push_back(
            {static_cast<uint32_t>(graph.buffers.size()), 0, static_cast<uint32_t>(view->channels)});
        graph.buffers.push_back({static_cast<uint32_t>(view->height), static_cast<uint32_t>(view->width),
                                 static_cast<uint32_t>(view->channels), 0, view->type});
    }
    return graph;
}

inline Operation operation_of(int64_t heads) {
    Operation operation{};
    operation.output = 1;
    operation.heads = static_cast<uint32_t>(heads);
    return operation;
}

template <class Arguments>
void run(void (*kernel)(const Arguments&), Arguments arguments, int64_t scratch_bytes) {
    Memory scratch(scratch_bytes);
    arguments.scratch = scratch.data();
    kernel(arguments);
    EXPECT(scratch.guarded(), "written outside the scratch");
}

}  // namespace pyflow::testing
