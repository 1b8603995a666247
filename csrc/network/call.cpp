#include "call.hpp"

#include <cstring>

namespace pyflow::network {

namespace {

View view_of(const Graph& graph, const Layout& layout, uint32_t tensor, uint8_t* arena) {
    const auto& [index, offset, channels] = graph.tensors[tensor];
    const Buffer& buffer = graph.buffers[index];
    const int64_t inside = buffer.border * (buffer.row() + buffer.channels) + offset;
    const int64_t element = bytes_of(buffer) / buffer.picture();
    return {arena + layout.offsets[index] + inside * element,
            buffer.height,
            buffer.width,
            channels,
            buffer.channels,
            buffer.row(),
            buffer.picture(),
            buffer.border,
            buffer.type};
}

// Of the sampler's pictures, not of the tensor.
int64_t bytes_of_picture(const View& view) { return view.channels * view.height * view.width * int64_t{sizeof(float)}; }

}  // namespace

Call::Call(const Graph& graph, const Schedule& schedule, const Layout& layout, uint32_t index, const Memory& memory)
    : operation_(index), kind_(graph.operations[index].kind) {
    const Operation& operation = graph.operations[index];
    const auto view = [&](uint32_t tensor, Place& place) {
        if (tensor == kNone) return View{};
        const uint32_t buffer = graph.tensors[tensor].buffer;
        const Span span = schedule.spans[buffer];
        const View made = view_of(graph, layout, tensor, span == Span::conditions ? memory.conditions : memory.group);
        place = {static_cast<uint8_t*>(made.data), span == Span::group ? bytes_of(graph.buffers[buffer]) : 0};
        return made;
    };
    const View input = view(operation.input, input_), other = view(operation.other, other_),
               output = view(operation.output, output_);
    const auto of_conditions = [&](uint32_t tensor) {
        return tensor != kNone && schedule.spans[graph.tensors[tensor].buffer] == Span::conditions;
    };
    if (of_conditions(operation.other) && !of_conditions(operation.output)) rows_ = memory.rows;
    const auto floats = [&](uint64_t offset) { return graph.at<float>(offset); };

    switch (kind_) {
        case Kind::load:
            copy_ = {memory.x, output, 0};
            input_ = {reinterpret_cast<uint8_t*>(memory.x), bytes_of_picture(output)};
            break;
        case Kind::waves:
            waves_ = {memory.s, memory.t, floats(operation.weights), floats(operation.bias), graph.header.times,
                      0,        output};
            break;
        case Kind::label:
            label_ = {floats(operation.weights), memory.labels, output};
            break;
        case Kind::prepare:
            prepare_ = {};
            prepare_.input = input;
            prepare_.output = output;
            prepare_.gamma = floats(operation.weights);
            prepare_.beta = floats(operation.bias);
            if (operation.other != kNone) {
                prepare_.film = static_cast<const float*>(other.data) + operation.film_offset;
                prepare_.film_stride = other.picture;
            }
            prepare_.groups = operation.groups;
            prepare_.upsample = operation.upsample;
            prepare_.epsilon = operation.epsilon;
            prepare_.scale = operation.scale;
            prepare_.zero = operation.zero;
            prepare_.silu = operation.silu != 0;
            prepare_.scratch = memory.scratch;
            break;
        case Kind::convolve:
            convolve_ = {};
            convolve_.input = input;
            convolve_.output = output;
            convolve_.other = other;
            convolve_.weights = graph.at<uint8_t>(operation.weights);
            convolve_.bias = floats(operation.bias);
            convolve_.scales = floats(operation.scales);
            convolve_.taps = operation.taps;
            convolve_.stride = operation.stride;
            convolve_.algorithm = operation.algorithm;
            convolve_.weights_type = operation.weights_type;
            convolve_.silu = operation.silu != 0;
            convolve_.scratch = memory.scratch;
            break;
        case Kind::attend:
            attend_ = {input, output, 0, operation.heads, memory.scratch, operation.weights_type};
            break;
        case Kind::store:
            copy_ = {memory.out, input, 0};
            output_ = {reinterpret_cast<uint8_t*>(memory.out), bytes_of_picture(input)};
            break;
    }
}

void Call::run(const Kernels& kernels, const Pictures& pictures) {
    const int64_t first = pictures.first, in_batch = pictures.group + first, count = pictures.count;
    const int32_t* rows = rows_ ? rows_ + in_batch : nullptr;
    switch (kind_) {
        case Kind::load:
            copy_.pictures = static_cast<float*>(input_.at(in_batch));
            copy_.view.data = output_.at(first);
            copy_.count = count;
            return kernels.load(copy_);
        case Kind::waves:
            waves_.conditions = count;
            return kernels.waves(waves_);
        case Kind::label:
            for (int64_t i = 0; i < count; ++i)
                std::memcpy(label_.output.at<float>(i, 0, 0), label_.table + label_.labels[i] * label_.output.channels,
                            label_.output.channels * sizeof(float));
            return;
        case Kind::prepare:
            prepare_.input.data = input_.at(first);
            prepare_.output.data = output_.at(first);
            prepare_.condition = rows;
            prepare_.pictures = count;
            return kernels.prepare(prepare_);
        case Kind::convolve:
            convolve_.input.data = input_.at(first);
            convolve_.output.data = output_.at(first);
            convolve_.other.data = other_.at(first);
            convolve_.condition = rows;
            convolve_.pictures = count;
            return kernels.convolve(convolve_);
        case Kind::attend:
            attend_.input.data = input_.at(first);
            attend_.output.data = output_.at(first);
            attend_.pictures = count;
            return kernels.attend(attend_);
        case Kind::store:
            copy_.pictures = static_cast<float*>(output_.at(in_batch));
            copy_.view.data = input_.at(first);
            copy_.count = count;
            return kernels.store(copy_);
    }
}

}  // namespace pyflow::network
