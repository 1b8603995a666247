#include "network_file.hpp"

#include <algorithm>
#include <cstring>
#include <new>

#include "../network/operations.hpp"

namespace pyflow::testing {

using namespace network;

namespace {

template <class Record>
void append(std::vector<uint8_t>& content, const Record* records, size_t count) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(records);
    content.insert(content.end(), bytes, bytes + count * sizeof(Record));
}

// Adds operations with the weights that they need.
class Builder {
  public:
    Builder(Random& random, uint32_t channels, uint32_t height, uint32_t width, uint32_t classes) : random_(random) {
        std::memcpy(file_.header.magic, "pyflow\0n", 8);
        file_.header.version = 1;
        file_.header.channels = channels;
        file_.header.height = height;
        file_.header.width = width;
        file_.header.times = static_cast<uint32_t>(1 + random.below(2));
        file_.header.classes = classes;
        file_.header.points = height * width == 1;
    }

    NetworkFile& file() { return file_; }
    Buffer shape(uint32_t tensor) const {
        Buffer shape = file_.buffer_of(tensor);
        shape.channels = file_.tensors[tensor].channels;
        return shape;
    }

    uint32_t buffer(Buffer buffer) {
        file_.buffers.push_back(buffer);
        return static_cast<uint32_t>(file_.buffers.size() - 1);
    }
    uint32_t part(uint32_t buffer, uint32_t offset, uint32_t channels) {
        file_.tensors.push_back({buffer, offset, channels});
        return static_cast<uint32_t>(file_.tensors.size() - 1);
    }
    uint32_t whole(Buffer made) { return part(buffer(made), 0, made.channels); }
    uint32_t pixels(uint32_t height, uint32_t width, uint32_t channels) {
        return whole({height, width, channels, 0, Type::f32});
    }

    uint32_t load(uint32_t border) {
        const Header& state = file_.header;
        Operation operation = made("load", Kind::load);
        operation.output = whole({state.height, state.width, state.channels, border, Type::f32});
        return add(operation);
    }

    void store(uint32_t input) {
        Operation operation = made("store", Kind::store);
        operation.input = input;
        add(operation);
    }

    uint32_t waves() {
        Operation operation = made("waves", Kind::waves);
        operation.output = pixels(1, 1, kWaves * file_.header.times);
        return add(operation);
    }

    uint32_t label(uint32_t channels) {
        Operation operation = made("label", Kind::label);
        operation.output = pixels(1, 1, channels);
        return add(operation);
    }

    struct Prepared {
        Type type = Type::f32;
        uint32_t border = 1, groups = 0, upsample = 1, film = kNone, film_offset = 0;
        bool silu = false;
    };
    uint32_t prepare(const char* name, uint32_t input, const Prepared& how) {
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

    uint32_t convolve(const char* name, uint32_t input, uint32_t output, Algorithm algorithm, Type weights_type,
                      uint32_t taps, uint32_t stride = 1, uint32_t other = kNone, bool silu = false) {
        Operation operation = made(name, Kind::convolve);
        operation.input = input;
        operation.other = other;
        operation.output = output;
        operation.taps = taps;
        operation.stride = stride;
        operation.algorithm = algorithm;
        operation.weights_type = weights_type;
        operation.silu = silu;
        return add(operation);
    }
    // A linear layer, or a 1x1 convolution, in float32.
    uint32_t project(const char* name, uint32_t input, uint32_t channels, bool silu = false, uint32_t other = kNone) {
        const Buffer from = shape(input);
        return convolve(name, input, pixels(from.height, from.width, channels), Algorithm::direct, Type::f32, 1, 1,
                        other, silu);
    }

    uint32_t attend(const char* name, uint32_t input, uint32_t heads) {
        const Buffer from = shape(input);
        Operation operation = made(name, Kind::attend);
        operation.input = input;
        operation.output = pixels(from.height, from.width, from.channels / 3);
        operation.heads = heads;
        return add(operation);
    }

    // The vector of times and label, of `channels`.
    uint32_t condition(uint32_t channels) {
        const uint32_t table = file_.header.classes > 0 ? label(channels) : kNone;
        const uint32_t hidden = project("time.0", waves(), channels, true);
        return project("time.2", hidden, channels, false, table);
    }

    // A way to convolve that the picture and its channels allow, and the input that it wants.
    struct Way {
        Algorithm algorithm = Algorithm::direct;
        Type weights = Type::f32, input = Type::f32;
    };
    Way draw(const Buffer& from, uint32_t taps, uint32_t stride) {
        std::vector<Way> ways = {{}};
        if (from.channels % 4 == 0) {
            ways.push_back({Algorithm::direct, Type::bf16, Type::bf16});
            ways.push_back({Algorithm::direct, Type::s8, Type::u8});
        }
        if (taps == 3 && stride == 1 && from.height % 2 == 0 && from.width % 2 == 0) {
            ways.push_back({Algorithm::winograd2, Type::f32, Type::f32});
            ways.push_back({Algorithm::winograd2, Type::bf16, Type::f32});
            if (from.height % 4 == 0 && from.width % 4 == 0)
                ways.push_back({Algorithm::winograd4, Type::f32, Type::f32});
        }
        return random_.one_of(ways);
    }

  private:
    static Operation made(const char* name, Kind kind) {
        Operation operation{};
        operation.kind = kind;
        operation.input = operation.other = operation.output = kNone;
        operation.taps = operation.stride = operation.upsample = 1;
        operation.weights = operation.bias = operation.scales = kNoWeights;
        std::strncpy(operation.name, name, sizeof operation.name - 1);
        return operation;
    }

    uint32_t add(Operation operation) {
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

    uint64_t keep(uint64_t bytes, Type type, float deviation) {
        std::vector<uint8_t>& weights = file_.weights;
        const uint64_t begin = weights.size();
        for (uint64_t at = 0; at < bytes; at += 4) {
            float number = random_.around_zero(deviation);
            uint32_t bits;
            std::memcpy(&bits, &number, 4);
            if (type == Type::bf16) bits = (bits >> 16) * 0x00010001u;
            if (type == Type::s8) bits = static_cast<uint32_t>(random_.bits());
            append(weights, &bits, 1);
        }
        weights.resize((weights.size() + 63) / 64 * 64);
        return begin;
    }

    Random& random_;
    NetworkFile file_;
};

class UNet {
  public:
    UNet(Random& random, uint32_t channels, uint32_t height, bool exact)
        : random_(random), exact_(exact), builder_(random, 3, height, height, 10), channels_(channels) {}

    NetworkFile build() {
        const uint32_t height = builder_.file().header.height, half = height / 2, wide = 2 * channels_;
        const uint32_t joined = builder_.buffer({height, height, wide, 0, Type::f32});
        const uint32_t kept = builder_.part(joined, channels_, channels_);
        const uint32_t condition = builder_.condition(wide);
        convolve("enter", builder_.load(1), kept, 3);
        film_ = builder_.project("film", builder_.prepare("film.silu", condition, silu(0)), 4 * wide);

        const uint32_t lower = builder_.pixels(half, half, channels_);
        down(kept, lower);
        const uint32_t middle = attention(block("middle", lower, builder_.pixels(half, half, wide), 0));
        const uint32_t raised = builder_.part(joined, 0, channels_);
        up(middle, raised);
        const uint32_t top =
            block("top", builder_.part(joined, 0, wide), builder_.pixels(height, height, channels_), 7);
        const uint32_t left = builder_.prepare("leave.norm", top, normed());
        const uint32_t prediction = builder_.pixels(height, height, 3);
        builder_.convolve("leave", left, prediction, Algorithm::direct, Type::f32, 3);
        builder_.store(prediction);
        return builder_.file();
    }

  private:
    using Prepared = Builder::Prepared;

    static Prepared silu(uint32_t border) {
        Prepared how;
        how.silu = true;
        how.border = border;
        return how;
    }
    static Prepared normed() {
        Prepared how = silu(1);
        how.groups = 4;
        return how;
    }

    Builder::Way way(const Buffer& from, uint32_t taps, uint32_t stride) {
        return exact_ ? Builder::Way{} : builder_.draw(from, taps, stride);
    }

    // Of what is prepared in float32 already.
    void convolve(const char* name, uint32_t input, uint32_t output, uint32_t taps) {
        builder_.convolve(name, input, output, Algorithm::direct, Type::f32, taps);
    }

    void prepare_and_convolve(const char* name, uint32_t input, uint32_t output, Prepared how, uint32_t stride = 1,
                              uint32_t other = kNone) {
        Buffer from = builder_.shape(input);
        from.height *= how.upsample;
        from.width *= how.upsample;
        const Builder::Way chosen = way(from, 3, stride);
        how.type = chosen.input;
        builder_.convolve(name, builder_.prepare((std::string(name) + ".in").c_str(), input, how), output,
                          chosen.algorithm, chosen.weights, 3, stride, other);
    }

    void down(uint32_t input, uint32_t output) { prepare_and_convolve("down", input, output, {}, 2); }
    void up(uint32_t input, uint32_t output) {
        Prepared how;
        how.upsample = 2;
        prepare_and_convolve("up", input, output, how);
    }

    uint32_t block(const std::string& name, uint32_t input, uint32_t output, uint32_t film_offset) {
        const Buffer made = builder_.shape(output);
        const uint32_t hidden = builder_.pixels(made.height, made.width, made.channels);
        prepare_and_convolve((name + ".conv1").c_str(), input, hidden, normed());
        const uint32_t skip = builder_.project((name + ".skip").c_str(), input, made.channels);
        Prepared how = normed();
        how.film = film_;
        how.film_offset = film_offset;
        prepare_and_convolve((name + ".conv2").c_str(), hidden, output, how, 1, skip);
        return output;
    }

    uint32_t attention(uint32_t input) {
        Prepared how;
        how.border = 0;
        how.groups = 4;
        const uint32_t channels = builder_.shape(input).channels;
        const uint32_t normal = builder_.prepare("attention.norm", input, how);
        const uint32_t qkv = builder_.project("attention.qkv", normal, 3 * channels);
        const uint32_t attended = builder_.attend("attention", qkv, random_.once_in(2) ? 1 : 2);
        return builder_.project("attention.out", attended, channels, false, input);
    }

    Random& random_;
    bool exact_;
    Builder builder_;
    uint32_t channels_, film_ = kNone;
};

}  // namespace

File::File(const std::vector<uint8_t>& content)
    : data_(static_cast<uint8_t*>(::operator new(content.size(), std::align_val_t{64}))), size_(content.size()) {
    std::copy(content.begin(), content.end(), data_.get());
}

std::vector<uint8_t> NetworkFile::content() const {
    Header written = header;
    written.buffers = static_cast<uint32_t>(buffers.size());
    written.tensors = static_cast<uint32_t>(tensors.size());
    written.operations = static_cast<uint32_t>(operations.size());
    const size_t tables = sizeof(Header) + buffers.size() * sizeof(Buffer) + tensors.size() * sizeof(Tensor) +
                          operations.size() * sizeof(Operation);
    written.weights_offset = (tables + 63) / 64 * 64;
    written.weights_bytes = weights.size();
    std::vector<uint8_t> content;
    append(content, &written, 1);
    append(content, buffers.data(), buffers.size());
    append(content, tensors.data(), tensors.size());
    append(content, operations.data(), operations.size());
    content.resize(written.weights_offset);
    append(content, weights.data(), weights.size());
    return content;
}

Operation& NetworkFile::named(const std::string& name) {
    const auto found = std::find_if(operations.begin(), operations.end(),
                                    [&](const Operation& operation) { return name == operation.name; });
    EXPECT(found != operations.end(), "no operation " + name);
    return *found;
}

NetworkFile mlp(Random& random, uint32_t width, uint32_t depth, uint32_t classes) {
    Builder builder(random, 2, 1, 1, classes);
    const uint32_t condition = builder.condition(width);
    uint32_t h = builder.project("enter", builder.load(0), width, true, condition);
    for (uint32_t layer = 1; layer < depth; ++layer)
        h = builder.project(("hidden." + std::to_string(layer)).c_str(), h, width, true);
    builder.store(builder.project("leave", h, 2));
    return builder.file();
}

NetworkFile unet(Random& random, uint32_t channels, uint32_t height, bool exact) {
    return UNet(random, channels, height, exact).build();
}

NetworkFile drawn(Random& random, int64_t operations) {
    const auto side = [&] { return static_cast<uint32_t>(1 + random.below(12)); };
    const auto width = [&] { return static_cast<uint32_t>(1 + random.below(40)); };
    Builder builder(random, width(), side(), side(), static_cast<uint32_t>(random.below(4)));
    const uint32_t film = builder.condition(128);
    std::vector<uint32_t> made = {builder.load(static_cast<uint32_t>(random.below(3)))};
    const uint32_t state = made[0], height = builder.shape(state).height;
    for (int64_t i = 0; i < operations; ++i) {
        const uint32_t input = random.one_of(made);
        const Buffer from = builder.shape(input);
        const auto choice = random.below(4);
        if (choice == 0 && from.height <= height && from.channels % 3 == 0) {
            made.push_back(builder.attend("attend", input, 1));
        } else if (choice == 1 && from.border <= 1) {
            made.push_back(builder.project("project", input, width(), random.once_in(2)));
        } else {
            const auto stride = static_cast<uint32_t>(1 + random.below(2));
            Builder::Prepared how;
            how.silu = random.once_in(2);
            how.groups = random.once_in(2) ? 0 : from.channels % 2 == 0 ? 2 : 1;
            how.upsample = from.height <= 12 && random.once_in(3) ? 2 : 1;
            if (random.once_in(3)) how.film = film;
            Buffer shape = from;
            shape.height *= how.upsample;
            shape.width *= how.upsample;
            const Builder::Way way = builder.draw(shape, 3, stride);
            how.type = way.input;
            const uint32_t output =
                builder.pixels((shape.height - 1) / stride + 1, (shape.width - 1) / stride + 1, width());
            const uint32_t prepared = builder.prepare("prepare", input, how);
            made.push_back(builder.convolve("convolve", prepared, output, way.algorithm, way.weights, 3, stride));
        }
    }
    std::vector<uint32_t> fitting;
    for (uint32_t tensor : made) {
        const Buffer shape = builder.shape(tensor), wanted = builder.shape(state);
        if (shape.height == wanted.height && shape.width == wanted.width && shape.border <= 1)
            fitting.push_back(tensor);
    }
    builder.store(fitting.empty() ? state : builder.project("leave", fitting.back(), builder.shape(state).channels));
    return builder.file();
}

NetworkFile any_network(Random& random) {
    switch (random.below(3)) {
        case 0:
            return mlp(random, static_cast<uint32_t>(1 + random.below(70)), static_cast<uint32_t>(1 + random.below(4)),
                       static_cast<uint32_t>(random.below(5)));
        case 1:
            return unet(random, static_cast<uint32_t>(4 * (1 + random.below(6))), random.once_in(2) ? 8 : 16,
                        random.once_in(4));
        default:
            return drawn(random, 1 + random.below(12));
    }
}

}  // namespace pyflow::testing
