// parse: valid networks are read, and records with impossible values are refused in words that name them.
#include <cstring>
#include <limits>

#include "refusals.hpp"

using namespace pyflow;
using namespace pyflow::network;
using namespace pyflow::testing;

namespace {

void valid_networks_are_read(Random& random) {
    for (int i = 0; i < 300; ++i) {
        const NetworkFile written = any_network(random);
        const File file(written.content());
        const Graph graph = parse(file.data(), file.size());
        EXPECT(
            written.given() == int64_t{graph.header.channels + graph.extra} * graph.header.height * graph.header.width,
            "what is told beside the state");
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
    expect_refused({content.begin(), content.begin() + 63}, "its size is 63 bytes; expected at least 64");
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
                   "where the weights begin is");
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
    refused("down", [](Operation& o) { o.algorithm = static_cast<Algorithm>(4); }, "algorithm is 4");
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
    EXPECT(bytes(3, Algorithm::winograd4, Type::bf16, 5, 32) == 9 * 6 * 32 * 2, "raw taps in pairs");
    EXPECT(bytes(3, Algorithm::winograd2x4, Type::bf16, 5, 32) == 9 * 6 * 32 * 2, "raw taps in pairs");
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
    bytes_of_weights();
    networks_are_described(random);
    std::printf("test_graph: passed\n");
}
