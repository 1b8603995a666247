#include "network_file.hpp"

#include <algorithm>
#include <new>

#include "network_builder.hpp"

namespace pyflow::testing {

using namespace network;

namespace {

template <class Record>
uint8_t* write(const std::vector<Record>& records, uint8_t* to) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(records.data());
    return std::copy(bytes, bytes + records.size() * sizeof(Record), to);
}

class UNet {
  public:
    UNet(Random& random, uint32_t channels, uint32_t height, bool exact)
        : random_(random), exact_(exact), builder_(random, 3, height, height, 10), channels_(channels) {}

    NetworkFile build() {
        const uint32_t height = builder_.file().header.height, half = height / 2, wide = 2 * channels_;
        const uint32_t joined = builder_.buffer({height, height, wide, 0, Type::f32});
        const uint32_t kept = builder_.part(joined, channels_, channels_);
        const uint32_t condition = builder_.condition(wide);
        const auto told = static_cast<uint32_t>(exact_ ? 0 : random_.below(5));
        builder_.convolve("enter", builder_.load(1, told), kept, {}, 3);
        Prepared silu;
        silu.border = 0;
        silu.silu = true;
        film_ = builder_.project("film", builder_.prepare("film.silu", condition, silu), 4 * wide);

        const uint32_t lower = builder_.pixels(half, half, channels_);
        convolve("down", kept, lower, {}, 2);
        const uint32_t middle = attention(block("middle", lower, builder_.pixels(half, half, wide), 0));
        Prepared twice;
        twice.upsample = 2;
        convolve("up", middle, builder_.part(joined, 0, channels_), twice);
        const uint32_t all = builder_.part(joined, 0, wide);
        const uint32_t top = block("top", all, builder_.pixels(height, height, channels_), 7);
        const uint32_t prediction = builder_.pixels(height, height, 3);
        builder_.convolve("leave", builder_.prepare("leave.norm", top, normed()), prediction, {}, 3);
        builder_.store(prediction);
        return builder_.file();
    }

  private:
    using Prepared = Builder::Prepared;

    static Prepared normed() {
        Prepared how;
        how.silu = true;
        how.groups = 4;
        return how;
    }

    // 3x3, of what it prepares.
    void convolve(const std::string& name, uint32_t input, uint32_t output, Prepared how, uint32_t stride = 1,
                  uint32_t other = kNone) {
        Buffer from = builder_.shape(input);
        from.height *= how.upsample;
        from.width *= how.upsample;
        const Builder::Way way = exact_ ? Builder::Way{} : builder_.draw(from, 3, stride);
        how.type = way.input;
        builder_.convolve(name, builder_.prepare(name + ".in", input, how), output, way, 3, stride, other);
    }

    uint32_t block(const std::string& name, uint32_t input, uint32_t output, uint32_t film_offset) {
        const Buffer made = builder_.shape(output);
        const uint32_t hidden = builder_.pixels(made.height, made.width, made.channels);
        convolve(name + ".conv1", input, hidden, normed());
        const uint32_t skip = builder_.project(name + ".skip", input, made.channels);
        Prepared how = normed();
        how.film = film_;
        how.film_offset = film_offset;
        convolve(name + ".conv2", hidden, output, how, 1, skip);
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
    std::vector<uint8_t> content(written.weights_offset + weights.size());
    uint8_t* to = write(std::vector<Header>{written}, content.data());
    write(operations, write(tensors, write(buffers, to)));
    write(weights, content.data() + written.weights_offset);
    return content;
}

Operation& NetworkFile::named(const std::string& name) {
    const auto found = std::find_if(operations.begin(), operations.end(),
                                    [&](const Operation& operation) { return name == operation.name; });
    EXPECT(found != operations.end(), "no operation " + name);
    return *found;
}

int64_t NetworkFile::given() const {
    const auto load = std::find_if(operations.begin(), operations.end(),
                                   [](const Operation& operation) { return operation.kind == Kind::load; });
    return int64_t{tensors[load->output].channels} * header.height * header.width;
}

NetworkFile mlp(Random& random, uint32_t width, uint32_t depth, uint32_t classes) {
    Builder builder(random, 2, 1, 1, classes);
    const uint32_t condition = builder.condition(width);
    uint32_t h = builder.project("enter", builder.load(0), width, true, condition);
    for (uint32_t layer = 1; layer < depth; ++layer)
        h = builder.project("hidden." + std::to_string(layer), h, width, true);
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
    uint32_t film = builder.condition(128);
    const auto told = static_cast<uint32_t>(random.below(3));
    std::vector<uint32_t> made = {builder.load(static_cast<uint32_t>(random.below(3)), told)};
    const uint32_t loaded = builder.file().tensors[made[0]].buffer;
    const uint32_t state = builder.part(loaded, 0, builder.file().header.channels);
    const uint32_t height = builder.shape(state).height;
    for (int64_t i = 0; i < operations; ++i) {
        const uint32_t input = random.one_of(made);
        const Buffer from = builder.shape(input);
        const auto choice = random.below(5);
        if (choice == 0 && from.height <= height && from.channels % 3 == 0) {
            made.push_back(builder.attend("attend", input, 1));
        } else if (choice == 1 && from.border <= 1) {
            made.push_back(builder.project("project", input, width(), random.once_in(2)));
        } else if (choice == 2) {
            const uint32_t aside = builder.project("aside", film, 128);
            film = random.once_in(2) ? film : aside;
        } else {
            const uint32_t taps = random.once_in(3) ? 1 : 3;
            const auto stride = static_cast<uint32_t>(taps == 1 ? 1 : 1 + random.below(2));
            Builder::Prepared how;
            how.silu = random.once_in(2);
            how.groups = random.once_in(2) ? 0 : from.channels % 2 == 0 ? 2 : 1;
            how.upsample = from.height <= 12 && random.once_in(3) ? 2 : 1;
            if (taps == 1) how.border = static_cast<uint32_t>(random.below(2));
            if (random.once_in(3)) how.film = film;
            Buffer shape = from;
            shape.height *= how.upsample;
            shape.width *= how.upsample;
            const Builder::Way way = builder.draw(shape, taps, stride);
            how.type = way.input;
            const uint32_t output =
                builder.pixels((shape.height - 1) / stride + 1, (shape.width - 1) / stride + 1, width());
            const uint32_t prepared = builder.prepare("prepare", input, how);
            made.push_back(builder.convolve("convolve", prepared, output, way, taps, stride, kNone, random.once_in(2)));
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
