#include "memory.hpp"

#include <algorithm>
#include <numeric>

#include "operations.hpp"

namespace pyflow::network {

namespace {

constexpr uint64_t kLine = 64;

// What an operation reads and writes, but kNone.
template <class Use>
void each_buffer(const Graph& graph, uint32_t index, Use use) {
    const Operation& operation = graph.operations[index];
    for (uint32_t tensor : {operation.input, operation.other, operation.output})
        if (tensor != kNone) use(graph.tensors[tensor].buffer);
}

// The steps of a run during which a buffer keeps its content, both ends included.
struct Life {
    int64_t first = -1, last = -1;  // -1: never

    void include(int64_t from, int64_t to) {
        first = first < 0 ? from : std::min(first, from);
        last = std::max(last, to);
    }
    bool meets(const Life& other) const { return first <= other.last && other.first <= last; }
};

// Gives each buffer that lives the lowest place among those that live with it, the largest first.
uint64_t place(const std::vector<Life>& lives, const std::vector<uint64_t>& bytes, std::vector<uint64_t>& offsets) {
    std::vector<uint32_t> waiting;
    for (uint32_t buffer = 0; buffer < lives.size(); ++buffer)
        if (lives[buffer].first >= 0) waiting.push_back(buffer);
    std::stable_sort(waiting.begin(), waiting.end(), [&](uint32_t a, uint32_t b) { return bytes[a] > bytes[b]; });

    uint64_t total = 0;
    std::vector<uint32_t> placed;  // by offset
    for (uint32_t buffer : waiting) {
        uint64_t offset = 0;
        for (uint32_t other : placed) {
            if (!lives[buffer].meets(lives[other])) continue;
            if (offsets[other] >= offset + bytes[buffer]) break;
            offset = std::max(offset, offsets[other] + bytes[other]);
        }
        offsets[buffer] = offset;
        const auto behind = [&](uint64_t at, uint32_t other) { return at < offsets[other]; };
        placed.insert(std::upper_bound(placed.begin(), placed.end(), offset, behind), buffer);
        total = std::max(total, offset + bytes[buffer]);
    }
    return total;
}

}  // namespace

int64_t bytes_of(const Buffer& buffer) {
    return buffer.picture() * (buffer.type == Type::f32 ? 4 : buffer.type == Type::bf16 ? 2 : 1);
}

Schedule schedule(const Graph& graph) {
    Schedule made;
    std::vector<Life> stages(graph.buffers.size());
    std::vector<bool> of_conditions(graph.buffers.size());
    uint32_t height = 0;
    for (uint32_t index = 0; index < graph.operations.size(); ++index) {
        const Operation& operation = graph.operations[index];
        const bool told = operation.kind == Kind::waves || operation.kind == Kind::label;
        if (told || (operation.input != kNone && of_conditions[graph.tensors[operation.input].buffer])) {
            of_conditions[graph.tensors[operation.output].buffer] = true;
            made.conditions.push_back(index);
            continue;
        }
        const uint32_t shown = operation.kind == Kind::store ? operation.input : operation.output;
        if (graph.buffer_of(shown).height != height) made.stages.emplace_back();
        height = graph.buffer_of(shown).height;
        made.stages.back().operations.push_back(index);
        const auto stage = static_cast<int64_t>(made.stages.size()) - 1;
        each_buffer(graph, index, [&](uint32_t buffer) { stages[buffer].include(stage, stage); });
    }
    for (size_t i = 0; i < graph.buffers.size(); ++i)
        made.spans.push_back(of_conditions[i]                    ? Span::conditions
                             : stages[i].first == stages[i].last ? Span::chunk
                                                                 : Span::group);
    return made;
}

int64_t default_group(const Graph& graph, const Schedule& schedule) {
    int64_t weights = 0, buffers = 1;
    for (const Operation& operation : graph.operations)
        weights += static_cast<int64_t>(needs_of(graph, operation).weights);
    for (size_t i = 0; i < graph.buffers.size(); ++i)
        if (schedule.spans[i] == Span::group) buffers += bytes_of(graph.buffers[i]);
    return std::clamp<int64_t>(weights / buffers, 1, 16);
}

std::vector<int64_t> default_chunks(const Graph& graph, const Schedule& schedule, int64_t group, int64_t budget,
                                    double of_weights) {
    std::vector<Life> lives(graph.buffers.size());
    int64_t step = 0;
    for (const Stage& stage : schedule.stages)
        for (uint32_t index : stage.operations) {
            each_buffer(graph, index, [&](uint32_t buffer) { lives[buffer].include(step, step); });
            ++step;
        }
    std::vector<int64_t> live(step + 1);  // bytes at each step, of one picture; changes until they are summed
    for (size_t i = 0; i < lives.size(); ++i) {
        if (lives[i].first < 0 || schedule.spans[i] != Span::chunk) continue;
        live[lives[i].first] += bytes_of(graph.buffers[i]);
        live[lives[i].last + 1] -= bytes_of(graph.buffers[i]);
    }
    std::partial_sum(live.begin(), live.end(), live.begin());

    std::vector<int64_t> chunks;
    auto begin = live.begin();
    for (const Stage& stage : schedule.stages) {
        const auto end = begin + static_cast<int64_t>(stage.operations.size());
        const int64_t most = std::max<int64_t>(*std::max_element(begin, end), 1);
        double weights = 0.0;
        for (uint32_t index : stage.operations)
            weights += static_cast<double>(needs_of(graph, graph.operations[index]).weights);
        const int64_t allowed = std::max(budget, static_cast<int64_t>(of_weights * weights));
        chunks.push_back(std::clamp<int64_t>(allowed / most, 1, group));
        begin = end;
    }
    return chunks;
}

Layout lay_out(const Graph& graph, const Schedule& schedule, int64_t group, const std::vector<int64_t>& chunks,
               int64_t conditions) {
    const size_t buffers = graph.buffers.size();
    std::vector<uint64_t> bytes(buffers);
    std::vector<Life> condition_lives(buffers), lives(buffers);
    const auto hold = [&](uint32_t buffer, int64_t pictures) {
        const uint64_t size = static_cast<uint64_t>(pictures * bytes_of(graph.buffers[buffer]));
        bytes[buffer] = (size + kLine - 1) / kLine * kLine + kLine;
    };

    int64_t step = 0;
    for (uint32_t index : schedule.conditions) {
        each_buffer(graph, index, [&](uint32_t buffer) {
            condition_lives[buffer].include(step, step);
            hold(buffer, conditions);
        });
        ++step;
    }
    for (size_t s = 0; s < schedule.stages.size(); ++s) {
        const Stage& stage = schedule.stages[s];
        const int64_t begin = step, end = begin + static_cast<int64_t>(stage.operations.size()) - 1;
        for (uint32_t index : stage.operations) {
            each_buffer(graph, index, [&](uint32_t buffer) {
                const Span span = schedule.spans[buffer];
                if (span == Span::conditions) return condition_lives[buffer].include(step, step);
                hold(buffer, span == Span::chunk ? chunks[s] : group);
                // while one chunk is at the stage's first operation, another has been at its last
                const bool all = span == Span::group && chunks[s] < group;
                lives[buffer].include(all ? begin : step, all ? end : step);
            });
            ++step;
        }
    }
    Layout layout;
    layout.offsets.resize(buffers);
    layout.condition_bytes = place(condition_lives, bytes, layout.offsets);
    layout.group_bytes = place(lives, bytes, layout.offsets);
    return layout;
}

}  // namespace pyflow::network
