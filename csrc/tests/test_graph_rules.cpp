// parse: records of possible values that do not fit each other are refused.
#include <algorithm>
#include <limits>

#include "refusals.hpp"

using namespace pyflow;
using namespace pyflow::network;
using namespace pyflow::testing;

namespace {

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
    refused(half, "middle.conv1", [](Operation& o, NetworkFile&) { o.weights_type = Type::s8; }, "expected f32");
    refused(
        bf16, "middle.conv2.in",
        [](Operation& o, NetworkFile& file) { o.input = file.named("middle.conv1.in").output; },
        "input is 4x4x8 bf16; expected 4x4x8 f32");

    const auto odd = [&](uint32_t height, Algorithm algorithm, const char* wanted) {
        NetworkFile file = unet(random, 8, height, true);
        file.named("middle.conv1").algorithm = algorithm;
        expect_refused(file.content(), wanted);
    };
    odd(12, Algorithm::winograd4, "input is 6x6x8 f32; expected height in multiples of 4 and width of 4");
    odd(12, Algorithm::winograd2x4, "input is 6x6x8 f32; expected height in multiples of 2 and width of 4");
    odd(6, Algorithm::winograd2, "input is 3x3x8 f32; expected height in multiples of 2 and width of 2");

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

    // nor do the sums of transformed pictures take one
    Operation& pairs = five.named("middle.conv1");
    five.buffers[five.tensors[norm.output].buffer] = {4, 4, 5, 1, Type::f32};
    pairs.algorithm = Algorithm::winograd2;
    expect_refused(five.content(), "input is 4x4x5 f32; expected its channels in pairs, for bf16");
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
    refused([](NetworkFile& file) { file.tensors[file.named("load").output].channels = 2; },
            "(load): output is 8x8x2 f32; expected 8x8x3 f32");
    refused([](NetworkFile& file) { file.named("store").input = file.named("enter").output; },
            "(store): input is 8x8x8 f32; expected 8x8x3 f32");
    refused(buffer("store", &Operation::input, [](Buffer& b) { b.width = 4; }), "output is 8x4x3 f32");
    refused(buffer("waves", &Operation::output, [](Buffer& b) { b.height = 2; }), "output is 2x1x");
    refused([](NetworkFile& file) { file.tensors[file.named("waves").output].channels = 32; },
            "(waves): output is 1x1x32 f32; expected 1x1x");
    refused(buffer("attention", &Operation::output, [](Buffer& b) { b.type = Type::bf16; }),
            "output is 4x4x16 bf16; expected 4x4x16 f32");
    refused(buffer("label", &Operation::output, [](Buffer& b) { b.type = Type::bf16; }),
            "output is 1x1x16 bf16; expected 1x1x16 f32");
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

}  // namespace

int main(int arguments, char** argument) {
    Random random(seed_of(arguments, argument));
    weights_end_where_the_file_ends(random);
    types_are_checked(random);
    sums_of_int8_fit(random);
    orders_are_checked(random);
    shapes_are_checked(random);
    conditions_are_checked(random);
    std::printf("test_graph_rules: passed\n");
}
