// parse: valid networks are read, every other is refused in words that name what is wrong.
#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>

#include "../errors.hpp"
#include "network_file.hpp"

using namespace pyflow;
using namespace pyflow::network;
using namespace pyflow::testing;

namespace {

// What parse says of these bytes; empty when it takes them.
std::string refusal(const std::vector<uint8_t>& content) {
    const File file(content);
    try {
        parse(file.data(), file.size());
    } catch (const InvalidArtefact& error) {
        return error.what();
    }
    return "";
}

void expect_refused(const std::vector<uint8_t>& content, const std::string& wanted) {
    const std::string said = refusal(content);
    EXPECT(said.find(wanted) != std::string::npos, "wanted '" + wanted + "', it said '" + said + "'");
    const std::string way_out = "; export it again";
    EXPECT(said.size() > way_out.size() && said.substr(said.size() - way_out.size()) == way_out, said);
}

using Spoil = std::function<void(NetworkFile&)>;

// A UNet of plain float32 convolutions with 8 channels of 8x8 is the network that each is done to.
void expect_refused(Random& random, const Spoil& spoil, const std::string& wanted) {
    NetworkFile file = unet(random, 8, 8, true);
    spoil(file);
    expect_refused(file.content(), wanted);
}

// Fields of an operation of that network.
Spoil with(const char* name, const std::function<void(Operation&)>& change) {
    return [=](NetworkFile& file) { change(file.named(name)); };
}

void valid_networks_are_read(Random& random) {
    for (int i = 0; i < 300; ++i) {
        const NetworkFile written = any_network(random);
        const File file(written.content());
        const Graph graph = parse(file.data(), file.size());
        EXPECT(graph.operations.size() == written.operations.size(), "operations are missing");
        EXPECT(std::memcmp(graph.operations.data(), written.operations.data(),
                           sizeof(Operation) * written.operations.size()) == 0,
               "operations changed");
        EXPECT(std::memcmp(graph.weights, written.weights.data(), written.weights.size()) == 0, "weights changed");
    }
}

void headers_are_checked(Random& random) {
    const auto header = [&](auto change, const char* wanted) {
        expect_refused(random, [&](NetworkFile& file) { change(file.header); }, wanted);
    };
    header([](Header& h) { h.magic[6] = 'x'; }, "its beginning is not that of a network");
    header([](Header& h) { h.version = 2; }, "its version is 2; expected 1;");
    header([](Header& h) { h.channels = 0; }, "the state's channels is 0; expected 1 to 65536");
    header([](Header& h) { h.height = 4097; }, "the state's height is 4097");
    header([](Header& h) { h.width = 0; }, "the state's width is 0");
    header([](Header& h) { h.times = 3; }, "the number of times is 3; expected 1 to 2");
    header([](Header& h) { h.classes = 1u << 25; }, "the number of classes is 33554432");
    header([](Header& h) { h.points = 2; }, "points is 2");
    header([](Header& h) { h.points = 1; }, "the state's height is 8; expected 1");
    expect_refused(random, [](NetworkFile& file) { file.buffers.clear(); }, "the number of buffers is 0");
    expect_refused(random, [](NetworkFile& file) { file.tensors.clear(); }, "the number of tensors is 0");
    expect_refused(random, [](NetworkFile& file) { file.operations.clear(); }, "the number of operations is 0");

    const std::vector<uint8_t> content = unet(random, 8, 8, true).content();
    for (size_t size = 0; size < content.size(); size += size < 4096 ? 1 : 977)
        EXPECT(!refusal({content.begin(), content.begin() + static_cast<std::ptrdiff_t>(size)}).empty(),
               "cut to " + std::to_string(size));
    std::vector<uint8_t> longer = content;
    longer.push_back(0);
    expect_refused(longer, "the number of bytes of weights");
    const auto with_header = [&](auto change) {
        std::vector<uint8_t> changed = content;
        Header read;
        std::memcpy(&read, changed.data(), sizeof read);
        change(read);
        std::memcpy(changed.data(), &read, sizeof read);
        return changed;
    };
    expect_refused(with_header([](Header& h) { h.operations = 65536; }), "where the weights begin");
    expect_refused(with_header([](Header& h) { h.operations = 0xffffffff; }), "the number of operations is 4294967295");
    expect_refused(with_header([](Header& h) { h.weights_offset = ~uint64_t{0} - 63; }), "where the weights begin");
    expect_refused(with_header([](Header& h) { h.weights_bytes = ~uint64_t{0}; }), "the number of bytes of weights");
    expect_refused(with_header([](Header& h) {
                       h.weights_offset += 4;
                       h.weights_bytes -= 4;
                   }),
                   "a multiple of 64");
}

void tables_are_checked(Random& random) {
    const auto buffer = [&](auto change, const char* wanted) {
        expect_refused(random, [&](NetworkFile& file) { change(file.buffers[2]); }, wanted);
    };
    buffer([](Buffer& b) { b.height = 0; }, "buffer 2's height is 0; expected 1 to 4096");
    buffer([](Buffer& b) { b.width = 5000; }, "buffer 2's width is 5000");
    buffer([](Buffer& b) { b.channels = 65537; }, "buffer 2's channels is 65537");
    buffer([](Buffer& b) { b.border = 9; }, "buffer 2's border is 9");
    buffer([](Buffer& b) { b.type = Type::s8; }, "buffer 2's type is 3");
    buffer([](Buffer& b) { b = {4096, 4096, 65536, 8, Type::f32}; }, "the activations of one picture is");
    const auto tensor = [&](auto change, const char* wanted) {
        expect_refused(random, [&](NetworkFile& file) { change(file.tensors[0]); }, wanted);
    };
    tensor([](Tensor& t) { t.buffer = 1000; }, "tensor 0's buffer is 1000");
    tensor([](Tensor& t) { t.channels = 0; }, "tensor 0's channels is 0");
    tensor([](Tensor& t) { t.channels = 17; }, "tensor 0's channels is 17; expected 1 to 16");
    tensor([](Tensor& t) { t.offset = 9; }, "tensor 0's offset is 9; expected 0 to 8");
    tensor([](Tensor& t) { t.offset = 0xffffffff; }, "tensor 0's offset is 4294967295");
}

void fields_are_checked(Random& random) {
    const auto refused = [&](const char* name, auto change, const std::string& wanted) {
        expect_refused(random, with(name, change), wanted);
    };
    const float nan = std::numeric_limits<float>::quiet_NaN();
    refused("down", [](Operation& o) { std::memset(o.name, 'n', sizeof o.name); }, "name is not text");
    refused("down", [](Operation& o) { o.name[1] = '\n'; }, "(d): name is not text");
    refused("down", [](Operation& o) { o.kind = static_cast<Kind>(7); }, "(down): kind is 7");
    refused("down", [](Operation& o) { o.input = 999; }, "input is tensor 999; expected one of");
    refused("down", [](Operation& o) { o.input = kNone; }, "input is none");
    refused("down", [](Operation& o) { o.output = kNone; }, "output is none");
    refused("down", [](Operation& o) { o.other = 999; }, "other is tensor 999");
    refused("store", [](Operation& o) { o.output = 0; }, "output is tensor 0; expected none");
    refused("load", [](Operation& o) { o.input = 0; }, "input is tensor 0; expected none");
    refused("attention", [](Operation& o) { o.other = 0; }, "other is tensor 0; expected none");
    refused("down", [](Operation& o) { o.silu = 2; }, "silu is 2");
    refused("down", [](Operation& o) { o.stride = 0; }, "stride is 0");
    refused("down", [](Operation& o) { o.stride = 3; }, "stride is 3");
    refused("down", [](Operation& o) { o.taps = 5; }, "taps is 5");
    refused("down", [](Operation& o) { o.taps = 0xffff; }, "taps is 65535");
    refused("top.skip", [](Operation& o) { o.stride = 2; }, "stride is 2");
    refused("down", [](Operation& o) { o.algorithm = static_cast<Algorithm>(3); }, "algorithm is 3");
    refused("down", [](Operation& o) { o.algorithm = Algorithm::winograd2; }, "algorithm is winograd2");
    refused("top.skip", [](Operation& o) { o.algorithm = Algorithm::winograd4; }, "algorithm is winograd4");
    refused("down", [](Operation& o) { o.weights_type = static_cast<Type>(9); }, "weights' type is 9");
    refused("down", [](Operation& o) { o.weights_type = Type::bf16; }, "weights' type is bf16; expected f32");
    refused("down", [](Operation& o) { o.weights += 32; }, "weights is at");
    refused("down", [](Operation& o) { o.weights = kNoWeights; }, "weights is none");
    refused("down", [](Operation& o) { o.bias = uint64_t{1} << 40; }, "bias is at 1099511627776");
    refused("down", [](Operation& o) { o.bias = ~uint64_t{0} - 63; }, "bias is at");
    refused("down", [](Operation& o) { o.scales = 0; }, "scales is at 0; expected none");
    refused("down.in", [](Operation& o) { o.weights = 0; }, "weights is at 0; expected none");
    refused("top.conv1.in", [](Operation& o) { o.groups = 3; }, "groups is 3; expected a divisor of 16");
    refused("top.conv1.in", [](Operation& o) { o.groups = 0xffffffff; }, "groups is 4294967295");
    refused("top.conv1.in", [](Operation& o) { o.groups = 0; }, "weights is at");
    refused("top.conv1.in", [=](Operation& o) { o.epsilon = nan; }, "epsilon is nan");
    refused("top.conv1.in", [](Operation& o) { o.epsilon = 0.0f; }, "epsilon is 0; expected finite and above 0");
    refused("up.in", [](Operation& o) { o.upsample = 0; }, "upsample is 0");
    refused("up.in", [](Operation& o) { o.upsample = 0x80000000; }, "upsample is 2147483648");
    refused("up.in", [](Operation& o) { o.upsample = 1; }, "output is 8x8x16 f32; expected 4x4x16 f32");
    refused("top.conv2.in", [](Operation& o) { o.film_offset = 49; }, "film_offset is 49");
    refused("top.conv2.in", [](Operation& o) { o.film_offset = 0xffffffff; }, "film_offset is 4294967295");
    refused("attention", [](Operation& o) { o.heads = 0; }, "heads is 0; expected a divisor of 16");
    refused("attention", [](Operation& o) { o.heads = 3; }, "heads is 3");
    refused("label", [](Operation& o) { o.weights = kNoWeights; }, "weights is none");
    refused("waves", [](Operation& o) { o.bias = kNoWeights; }, "bias is none");
    refused("store", [](Operation& o) { o.kind = Kind::load; }, "input is tensor");
}

void weights_end_where_the_file_ends(Random& random) {
    NetworkFile file = unet(random, 8, 8, true);
    Operation& last = file.named("leave");
    last.weights = file.weights.size() - 64;
    expect_refused(file.content(), "(leave): weights is at");

    NetworkFile classes = unet(random, 8, 8, true);
    classes.header.classes = 1u << 20;
    expect_refused(classes.content(), "(label): weights is at");
    classes.header.classes = 0;
    expect_refused(classes.content(), "classes is 0; expected 1 or more");
}

// Types that the plain network does not have.
void types_are_checked(Random& random) {
    const auto network = [&](Algorithm algorithm, Type weights, Type input) {
        for (;;) {
            NetworkFile file = unet(random, 8, 8, false);
            const Operation& found = file.named("middle.conv1");
            if (found.algorithm == algorithm && found.weights_type == weights &&
                file.buffer_of(found.input).type == input)
                return file;
        }
    };
    const auto refused = [&](NetworkFile file, const char* name, auto change, const char* wanted) {
        change(file.named(name), file);
        expect_refused(file.content(), wanted);
    };
    const NetworkFile s8 = network(Algorithm::direct, Type::s8, Type::u8);
    const NetworkFile bf16 = network(Algorithm::direct, Type::bf16, Type::bf16);
    const NetworkFile half = network(Algorithm::winograd2, Type::bf16, Type::f32);
    const float infinity = std::numeric_limits<float>::infinity();
    refused(s8, "middle.conv1.in", [](Operation& o, NetworkFile&) { o.zero = 256; }, "zero is 256");
    refused(s8, "middle.conv1.in", [=](Operation& o, NetworkFile&) { o.scale = infinity; }, "scale is inf");
    refused(s8, "middle.conv1.in", [](Operation& o, NetworkFile&) { o.scale = -1.0f; }, "scale is -1");
    refused(s8, "middle.conv1", [](Operation& o, NetworkFile&) { o.scales = kNoWeights; }, "scales is none");
    refused(s8, "middle.conv1", [](Operation& o, NetworkFile&) { o.algorithm = Algorithm::winograd2; }, "f32 for");
    refused(s8, "middle.conv1", [](Operation& o, NetworkFile&) { o.weights_type = Type::f32; }, "expected s8");
    refused(bf16, "middle.conv1", [](Operation& o, NetworkFile&) { o.algorithm = Algorithm::winograd2; }, "f32 for");
    refused(bf16, "middle.conv1", [](Operation& o, NetworkFile&) { o.weights_type = Type::s8; }, "expected bf16");
    refused(
        half, "middle.conv1", [](Operation& o, NetworkFile&) { o.algorithm = Algorithm::winograd4; }, "expected f32");
    const auto odd = [&](uint32_t height, Algorithm algorithm, const char* wanted) {
        NetworkFile file = unet(random, 8, height, true);
        file.named("middle.conv1").algorithm = algorithm;
        expect_refused(file.content(), wanted);
    };
    odd(12, Algorithm::winograd4, "input is 6x6x8 f32; expected height and width in multiples of 4");
    odd(6, Algorithm::winograd2, "input is 3x3x8 f32; expected height and width in multiples of 2");

    // five channels of bfloat16 are two and a half words
    NetworkFile five = bf16;
    Operation& norm = five.named("middle.conv1.in");
    norm.groups = 0;
    norm.weights = norm.bias = kNoWeights;
    five.tensors.push_back({five.tensors[norm.input].buffer, 0, 5});
    norm.input = static_cast<uint32_t>(five.tensors.size() - 1);
    five.tensors[norm.output].channels = five.buffers[five.tensors[norm.output].buffer].channels = 5;
    expect_refused(five.content(), "input is 4x4x5 bf16; expected a whole buffer, its channels in fours");
    five.buffers[five.tensors[norm.output].buffer].channels = 8;
    expect_refused(five.content(), "input is 4x4x5 bf16; expected a whole buffer, its channels in fours");
}

// 255 * 127 * 9 * 7284 is more than 31 bits hold.
void sums_of_int8_fit(Random& random) {
    NetworkFile file = unet(random, 8, 8, true);
    const auto load = std::find_if(file.operations.begin(), file.operations.end(),
                                   [](const Operation& operation) { return operation.kind == Kind::load; });
    const uint32_t state = load->output, prepared = static_cast<uint32_t>(file.tensors.size());
    file.header.channels = file.tensors[state].channels = file.buffers[file.tensors[state].buffer].channels = 7284;
    file.buffers.push_back({8, 8, 7284, 1, Type::u8});
    file.tensors.push_back({static_cast<uint32_t>(file.buffers.size() - 1), 0, 7284});
    Operation prepare = file.named("down.in"), convolve = file.named("down");
    prepare.input = state;
    prepare.output = convolve.input = prepared;
    prepare.scale = 1.0f;
    convolve.weights_type = Type::s8;
    file.operations.insert(load + 1, {prepare, convolve});
    expect_refused(file.content(), "input is 8x8x7284 u8; expected at most 65536 products");
}

void orders_are_checked(Random& random) {
    const auto swapped = [](const char* a, const char* b) {
        return [=](NetworkFile& file) { std::swap(file.named(a), file.named(b)); };
    };
    expect_refused(random, swapped("down.in", "down"), "expected one that the operations before have written");
    expect_refused(
        random, [](NetworkFile& file) { file.operations.push_back(file.operations.back()); },
        "kind is store; expected another");
    expect_refused(random, [](NetworkFile& file) { file.operations.pop_back(); }, "kind is convolve; expected store");
    expect_refused(
        random, [](NetworkFile& file) { file.named("film").input = file.named("film").output; },
        "(film): input is tensor");
    // a cycle: the block's skip reads what the block makes
    expect_refused(
        random, [](NetworkFile& file) { file.named("middle.skip").input = file.named("middle.conv2").output; },
        "(middle.skip): ");
    expect_refused(
        random, [](NetworkFile& file) { file.named("attention.out").output = file.named("attention.out").other; },
        "expected one of whose channels no operation before has written any");
    // half of the joined buffer is not written yet
    expect_refused(random, swapped("up", "top.conv1.in"), "(top.conv1.in): input is tensor");
    expect_refused(
        random,
        [](NetworkFile& file) {
            NetworkFile copy = file;
            file.operations.insert(file.operations.begin(), copy.named("load"));
        },
        "no operation before has written any");
    expect_refused(
        random,
        [](NetworkFile& file) {
            file.buffers.push_back(file.buffer_of(file.named("load").output));
            file.tensors.push_back({static_cast<uint32_t>(file.buffers.size() - 1), 0, 3});
            Operation second = file.named("load");
            second.output = static_cast<uint32_t>(file.tensors.size() - 1);
            file.operations.insert(file.operations.begin(), second);
        },
        "the number of loads is 2; expected 1");
}

void shapes_are_checked(Random& random) {
    const auto refused = [&](const Spoil& spoil, const char* wanted) { expect_refused(random, spoil, wanted); };
    const auto buffer = [](const char* name, uint32_t Operation::* tensor, auto change) {
        return [=](NetworkFile& file) { change(file.buffers[file.tensors[file.named(name).*tensor].buffer]); };
    };
    refused(buffer("load", &Operation::output, [](Buffer& b) { b.height = 16; }), "output is 16x8x3 f32; expected 8x8");
    refused(buffer("store", &Operation::input, [](Buffer& b) { b.width = 4; }), "output is 8x4x3 f32");
    refused(buffer("waves", &Operation::output, [](Buffer& b) { b.height = 2; }), "output is 2x1x");
    refused(buffer("label", &Operation::output, [](Buffer& b) { b.width = 2; }), "output is 1x2x16 f32");
    refused(buffer("down", &Operation::output, [](Buffer& b) { b.height = 5; }),
            "(down): output is 5x4x8 f32; expected 4x4x8");
    refused(buffer("attention", &Operation::output, [](Buffer& b) { b.height = 2; }),
            "(attention): input is 4x4x48 f32");
    refused(buffer("down.in", &Operation::output, [](Buffer& b) { b.border = 0; }), "input's border is 0; expected 1");
    refused(buffer("down.in", &Operation::output, [](Buffer& b) { b.border = 2; }), "input's border is 2; expected 1");
    refused(buffer("down.in", &Operation::output, [](Buffer& b) { b.channels = 9; }),
            "input's border is 1; expected 1, around a whole");
    refused(buffer("attention.norm", &Operation::output, [](Buffer& b) { b.border = 2; }),
            "input's border is 2; expected 0 or 1");
    refused(buffer("down.in", &Operation::output, [](Buffer& b) { b.type = Type::bf16; }),
            "weights' type is f32; expected bf16");
    refused(buffer("middle.conv1", &Operation::output, [](Buffer& b) { b.type = Type::u8; }),
            "output is 4x4x16 u8; expected 4x4x16 f32");
    refused([](NetworkFile& file) { file.named("attention.out").other = file.named("load").output; },
            "other is 8x8x3 f32; expected 4x4x16 f32");
    // a border that a convolution does not write
    refused(
        [](NetworkFile& file) {
            file.buffers[file.tensors[file.named("middle.conv1").output].buffer].border = 1;
            file.named("middle.conv2").input = file.named("middle.conv1").output;
        },
        "input is without a border");
}

void conditions_are_checked(Random& random) {
    const auto refused = [&](const Spoil& spoil, const char* wanted) { expect_refused(random, spoil, wanted); };
    refused([](NetworkFile& file) { file.named("top.conv2.in").other = file.named("down.in").input; },
            "other is 8x8x8 f32; expected 1x1x8 f32");

    NetworkFile points = mlp(random, 32, 2, 3);
    const Operation enter = points.named("enter");
    Operation& hidden = points.named("time.2");
    hidden.other = enter.output;
    expect_refused(points.content(), "(time.2): other is tensor");

    // the other way round: what follows from conditions alone is no prediction
    NetworkFile told = mlp(random, 32, 2, 3);
    told.named("hidden.1").input = told.named("enter").other;
    expect_refused(told.content(), "(store): input is of conditions; expected of pictures");

    // a condition that waits for a picture
    NetworkFile late = mlp(random, 32, 1, 3);
    Operation last = late.named("time.2");
    late.tensors.push_back(late.tensors[last.output]);
    late.buffers.push_back(late.buffer_of(last.output));
    late.tensors.back().buffer = static_cast<uint32_t>(late.buffers.size() - 1);
    last.other = enter.output;
    last.output = static_cast<uint32_t>(late.tensors.size() - 1);
    last.other = late.named("enter").output;
    late.operations.insert(late.operations.end() - 2, last);
    expect_refused(late.content(), "other is of pictures; expected of conditions, as the input is");

    // the prediction made by a prepare with film instead of the last layer
    const auto filmed = [&](const char* input, const char* other, uint32_t channels, const char* wanted) {
        NetworkFile file = mlp(random, 32, 2, 3);
        file.tensors.push_back(file.tensors[file.named(input).output]);
        file.tensors.back().channels = channels;
        Operation& prepare = file.named("leave");
        prepare.kind = Kind::prepare;
        prepare.weights = prepare.bias = kNoWeights;
        prepare.input = static_cast<uint32_t>(file.tensors.size() - 1);
        prepare.other = file.named(other).output;
        file.tensors[prepare.output].channels = channels;
        file.buffers[file.tensors[prepare.output].buffer].channels = channels;
        expect_refused(file.content(), wanted);
    };
    filmed("enter", "time.2", 32, "film_offset is 0; expected twice 32 channels behind it, of 32");
    filmed("enter", "hidden.1", 16, "other is of pictures; expected of conditions");
    filmed("time.0", "time.2", 16, "input is of conditions; expected of pictures, for film");
    filmed("enter", "time.2", 16, "(store): input is 1x1x16 f32");

    refused(
        [](NetworkFile& file) {
            Operation& silu = file.named("film.silu");
            silu.upsample = 2;
            Buffer& made = file.buffers[file.tensors[silu.output].buffer];
            made.height = made.width = 2;
        },
        "output is 2x2x16 f32; expected 1x1x16 f32");

    NetworkFile mixed = mlp(random, 32, 2, 3);
    const uint32_t joined = mixed.tensors[mixed.named("enter").output].buffer;
    mixed.buffers[joined].channels = 64;
    mixed.tensors[mixed.named("time.2").output] = {joined, 32, 32};
    expect_refused(mixed.content(), "output is beside others in its buffer; expected all of conditions");
}

void bytes_of_weights() {
    Operation operation{};
    const auto bytes = [&](uint32_t taps, Algorithm algorithm, Type type, int64_t inputs, int64_t outputs) {
        operation.taps = taps;
        operation.algorithm = algorithm;
        operation.weights_type = type;
        return packed_bytes(operation, inputs, outputs);
    };
    EXPECT(bytes(1, Algorithm::direct, Type::f32, 5, 32) == 5 * 32 * 4, "one panel");
    EXPECT(bytes(1, Algorithm::direct, Type::f32, 5, 33) == 5 * 48 * 4, "and a narrow one");
    EXPECT(bytes(1, Algorithm::direct, Type::f32, 5, 49) == 5 * 64 * 4, "and a wide one");
    EXPECT(bytes(1, Algorithm::direct, Type::f32, 5, 16) == 5 * 16 * 4, "a narrow one alone");
    EXPECT(bytes(3, Algorithm::direct, Type::bf16, 5, 32) == 9 * 6 * 32 * 2, "pairs");
    EXPECT(bytes(3, Algorithm::direct, Type::s8, 5, 32) == 9 * 8 * 32, "fours");
    EXPECT(bytes(3, Algorithm::winograd4, Type::f32, 5, 32) == 9 * 5 * 32 * 4, "raw taps");
    EXPECT(bytes(3, Algorithm::winograd2, Type::bf16, 5, 32) == 16 * 6 * 32 * 2, "transformed");
}

void networks_are_described(Random& random) {
    const File file(unet(random, 8, 8, true).content());
    const Graph graph = parse(file.data(), file.size());
    const std::string text = describe(graph);
    for (const char* part : {"norm 4 +film +silu", "upsample 2", "3x3 stride 2 direct f32", "1x1 f32 +other",
                             "from NCHW", "of 10 classes and none", "8x8x16 f32", "MB of weights", "GFLOP a picture"})
        EXPECT(text.find(part) != std::string::npos, "'" + std::string(part) + "' is not in\n" + text);
    size_t lines = 0, width = 0, begin = 0;
    for (size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1, ++lines) {
        if (lines == 0) width = end;
        EXPECT(lines > graph.operations.size() || end - begin == width, "line " + std::to_string(lines) + "\n" + text);
    }
    EXPECT(lines == graph.operations.size() + 2, text);
}

}  // namespace

int main(int arguments, char** argument) {
    Random random(seed_of(arguments, argument));
    valid_networks_are_read(random);
    headers_are_checked(random);
    tables_are_checked(random);
    fields_are_checked(random);
    weights_end_where_the_file_ends(random);
    types_are_checked(random);
    sums_of_int8_fit(random);
    orders_are_checked(random);
    shapes_are_checked(random);
    conditions_are_checked(random);
    bytes_of_weights();
    networks_are_described(random);
    std::printf("test_graph: passed\n");
}
