// Makes a network operation by operation, each with the weights that it needs.
#pragma once

#include "network_file.hpp"

namespace pyflow::testing {

class Builder {
  public:
    using Algorithm = network::Algorithm;
    using Buffer = network::Buffer;
    using Kind = network::Kind;
    using Operation = network::Operation;
    using Type = network::Type;

    Builder(Random& random, uint32_t channels, uint32_t height, uint32_t width, uint32_t classes);

    NetworkFile& file() { return file_; }
    // Of a tensor: its channels, and the rest of its buffer.
    Buffer shape(uint32_t tensor) const;

    uint32_t buffer(Buffer buffer);
    uint32_t part(uint32_t buffer, uint32_t offset, uint32_t channels);
    uint32_t whole(Buffer made) { return part(buffer(made), 0, made.channels); }
    uint32_t pixels(uint32_t height, uint32_t width, uint32_t channels) {
        return whole({height, width, channels, 0, Type::f32});
    }

    // Each gives its output.
    uint32_t load(uint32_t border, uint32_t told = 0);
    void store(uint32_t input);
    uint32_t waves();
    uint32_t label(uint32_t channels);

    struct Prepared {
        Type type = Type::f32;
        uint32_t border = 1, groups = 0, upsample = 1, film = network::kNone, film_offset = 0;
        bool silu = false;
    };
    uint32_t prepare(const std::string& name, uint32_t input, const Prepared& how);

    // A way to convolve, and the input that it wants.
    struct Way {
        Algorithm algorithm = Algorithm::direct;
        Type weights = Type::f32, input = Type::f32;
    };
    // One of those that the picture and its channels allow.
    Way draw(const Buffer& from, uint32_t taps, uint32_t stride);
    uint32_t convolve(const std::string& name, uint32_t input, uint32_t output, const Way& way, uint32_t taps,
                      uint32_t stride = 1, uint32_t other = network::kNone, bool silu = false);
    // A linear layer, or a 1x1 convolution, in float32.
    uint32_t project(const std::string& name, uint32_t input, uint32_t channels, bool silu = false,
                     uint32_t other = network::kNone);
    uint32_t attend(const std::string& name, uint32_t input, uint32_t heads);

    // The vector of times and label.
    uint32_t condition(uint32_t channels);

  private:
    uint32_t add(Operation operation);
    uint64_t keep(uint64_t bytes, Type type, float deviation);

    Random& random_;
    NetworkFile file_;
};

}  // namespace pyflow::testing
