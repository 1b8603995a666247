// The schedule and the layout: a run is played on an arena whose every byte remembers what was last written there.
#include <algorithm>
#include <set>

#include "../network/memory.hpp"
#include "network_file.hpp"

using namespace pyflow::network;
using namespace pyflow::testing;

namespace {

// One arena. A byte's mark says which buffer's which picture it holds.
class Arena {
  public:
    explicit Arena(uint64_t bytes) : marks_(bytes, 0) {}

    // The place and the 64 bytes behind it, over which a kernel's last vector may reach.
    void write(uint64_t offset, int64_t bytes, uint64_t mark, const std::string& who) {
        EXPECT(offset + static_cast<uint64_t>(bytes) + 64 <= marks_.size(), who + " ends behind the arena");
        std::fill_n(marks_.begin() + static_cast<int64_t>(offset), bytes, mark);
        std::fill_n(marks_.begin() + static_cast<int64_t>(offset) + bytes, 64, 0);
    }
    void expect(uint64_t offset, int64_t bytes, uint64_t mark, const std::string& who) const {
        const auto begin = marks_.begin() + static_cast<int64_t>(offset);
        EXPECT(std::all_of(begin, begin + bytes, [=](uint64_t byte) { return byte == mark; }),
               who + " was overwritten");
    }

  private:
    std::vector<uint64_t> marks_;
};

// Runs a graph's schedule as an executor does, with marks for numbers.
class Play {
  public:
    Play(const Graph& graph, const Schedule& schedule, const Layout& layout)
        : graph_(graph),
          schedule_(schedule),
          layout_(layout),
          condition_arena_(layout.condition_bytes),
          group_arena_(layout.group_bytes),
          first_writer_(graph.buffers.size(), kNone) {
        for (uint32_t i = 0; i < graph.operations.size(); ++i)
            if (graph.operations[i].output != kNone) {
                uint32_t& writer = first_writer_[graph.tensors[graph.operations[i].output].buffer];
                writer = std::min(writer, i);
            }
    }

    void conditions(int64_t count) {
        for (uint32_t operation : schedule_.conditions) run(operation, 0, count, 0);
        conditions_ = count;
    }

    // Pictures from `first`, which tells groups apart.
    void group(int64_t first, int64_t count, const std::vector<int64_t>& chunks) {
        for (size_t stage = 0; stage < schedule_.stages.size(); ++stage)
            for (int64_t at = 0; at < count; at += chunks[stage])
                for (uint32_t operation : schedule_.stages[stage].operations)
                    run(operation, at, std::min(chunks[stage], count - at), first);
    }

  private:
    void run(uint32_t index, int64_t at, int64_t count, int64_t first) {
        const Operation& operation = graph_.operations[index];
        for (uint32_t tensor : {operation.input, operation.other})
            if (tensor != kNone) visit(index, graph_.tensors[tensor].buffer, at, count, first, false);
        if (operation.output != kNone) visit(index, graph_.tensors[operation.output].buffer, at, count, first, true);
    }

    void visit(uint32_t index, uint32_t buffer, int64_t at, int64_t count, int64_t first, bool writes) {
        const Span span = schedule_.spans[buffer];
        const std::string who = "buffer " + std::to_string(buffer) + " at operation " + std::to_string(index);
        Arena& arena = span == Span::conditions ? condition_arena_ : group_arena_;
        const int64_t bytes = bytes_of(graph_.buffers[buffer]);
        // a picture reads the row of its condition, any of them
        const bool told = span == Span::conditions && !writes && conditions_ > 0;
        const int64_t begin = told ? 0 : at, end = told ? conditions_ : at + count;
        for (int64_t picture = begin; picture < end; ++picture) {
            const int64_t place = span == Span::chunk ? picture - at : picture;
            const uint64_t offset = layout_.offsets[buffer] + static_cast<uint64_t>(place * bytes);
            const int64_t number = span == Span::conditions ? picture : first + picture;
            const uint64_t mark = (uint64_t{buffer} + 1) << 32 | static_cast<uint64_t>(number);
            if (writes && first_writer_[buffer] == index)
                arena.write(offset, bytes, mark, who);
            else
                arena.expect(offset, bytes, mark, who);
        }
    }

    const Graph& graph_;
    const Schedule& schedule_;
    const Layout& layout_;
    Arena condition_arena_, group_arena_;
    std::vector<uint32_t> first_writer_;
    int64_t conditions_ = 0;
};

void expect_schedule(const Graph& graph, const Schedule& made) {
    std::set<uint32_t> seen(made.conditions.begin(), made.conditions.end());
    const auto is_condition = [&](uint32_t tensor) {
        return made.spans[graph.tensors[tensor].buffer] == Span::conditions;
    };
    for (uint32_t index : made.conditions) {
        const Operation& operation = graph.operations[index];
        EXPECT(is_condition(operation.output), operation.name);
        EXPECT(operation.input == kNone || is_condition(operation.input), operation.name);
        EXPECT(operation.kind != Kind::load && operation.kind != Kind::store, operation.name);
    }
    int64_t last = -1;
    uint32_t height_before = 0;
    for (const Stage& stage : made.stages) {
        EXPECT(!stage.operations.empty(), "a stage is empty");
        std::set<uint32_t> heights;
        for (uint32_t index : stage.operations) {
            const Operation& operation = graph.operations[index];
            const uint32_t shown = operation.kind == Kind::store ? operation.input : operation.output;
            EXPECT(!is_condition(shown), operation.name);
            heights.insert(graph.buffer_of(shown).height);
            EXPECT(last < index, "out of order");
            EXPECT(seen.insert(index).second, "twice");
            last = index;
        }
        EXPECT(heights.size() == 1, "a stage has two heights");
        EXPECT(*heights.begin() != height_before, "two stages of one height, one behind the other");
        height_before = *heights.begin();
    }
    EXPECT(seen.size() == graph.operations.size(), "operations are missing");
}

void nothing_that_is_needed_is_overwritten(Random& random) {
    for (int i = 0; i < 150; ++i) {
        const File file(any_network(random).content());
        const Graph graph = parse(file.data(), file.size());
        const Schedule made = schedule(graph);
        expect_schedule(graph, made);
        const int64_t group = 1 + random.below(5), conditions = 1 + random.below(4);
        std::vector<int64_t> chunks(made.stages.size());
        for (int64_t& chunk : chunks) chunk = 1 + random.below(group);
        const Layout layout = lay_out(graph, made, group, chunks, conditions);
        for (uint64_t offset : layout.offsets) EXPECT(offset % 64 == 0, "offset " + std::to_string(offset));
        Play play(graph, made, layout);
        play.conditions(conditions);
        play.group(0, group, chunks);
        play.group(group, 1 + random.below(group), chunks);
    }
}

uint64_t bytes_of_all(const Graph& graph, const Schedule& made, Span span) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < graph.buffers.size(); ++i)
        if (made.spans[i] == span) bytes += static_cast<uint64_t>(bytes_of(graph.buffers[i]));
    return bytes;
}

void memory_is_used_again(Random& random) {
    const File file(unet(random, 16, 32, true).content());
    const Graph graph = parse(file.data(), file.size());
    const Schedule made = schedule(graph);
    EXPECT(made.stages.size() == 3, std::to_string(made.stages.size()) + " stages");
    const std::vector<int64_t> ones(made.stages.size(), 1);
    const Layout one = lay_out(graph, made, 1, ones, 1), eight = lay_out(graph, made, 8, ones, 1);
    const uint64_t all = bytes_of_all(graph, made, Span::chunk) + bytes_of_all(graph, made, Span::group);
    EXPECT(one.group_bytes * 2 < all, std::to_string(one.group_bytes) + " of " + std::to_string(all));
    // only what crosses stages grows with the group
    const uint64_t crossing = 7 * bytes_of_all(graph, made, Span::group);
    EXPECT(eight.group_bytes < one.group_bytes + crossing + crossing / 8, std::to_string(eight.group_bytes));
    EXPECT(one.condition_bytes == eight.condition_bytes, "conditions grew with the group");
    EXPECT(lay_out(graph, made, 1, ones, 8).condition_bytes > one.condition_bytes, "conditions did not grow");
}

// The most bytes of a chunk's buffers that are needed at once, counted operation by operation.
int64_t working_set(const Graph& graph, const Schedule& made, const Stage& stage) {
    int64_t most = 0;
    for (size_t step = 0; step < stage.operations.size(); ++step) {
        int64_t bytes = 0;
        for (uint32_t buffer = 0; buffer < graph.buffers.size(); ++buffer) {
            const auto touches = [&](uint32_t index) {
                const Operation& operation = graph.operations[index];
                for (uint32_t tensor : {operation.input, operation.other, operation.output})
                    if (tensor != kNone && graph.tensors[tensor].buffer == buffer) return true;
                return false;
            };
            const auto begin = stage.operations.begin(), here = begin + static_cast<int64_t>(step);
            const bool lives =
                std::any_of(begin, here + 1, touches) && std::any_of(here, stage.operations.end(), touches);
            if (lives && made.spans[buffer] == Span::chunk) bytes += bytes_of(graph.buffers[buffer]);
        }
        most = std::max(most, bytes);
    }
    return most;
}

void chunks_fit_the_budget(Random& random) {
    for (int i = 0; i < 60; ++i) {
        const File file(any_network(random).content());
        const Graph graph = parse(file.data(), file.size());
        const Schedule made = schedule(graph);
        const int64_t group = 1 + random.below(40), budget = 1 + random.below(200000);
        const std::vector<int64_t> chunks = default_chunks(graph, made, group, budget, 0.0);
        EXPECT(chunks.size() == made.stages.size(), "a chunk for each stage");
        for (size_t stage = 0; stage < chunks.size(); ++stage) {
            const int64_t chunk = chunks[stage], bytes = working_set(graph, made, made.stages[stage]);
            const std::string why = "chunk " + std::to_string(chunk) + " of " + std::to_string(bytes) +
                                    " bytes, group " + std::to_string(group) + ", budget " + std::to_string(budget);
            EXPECT(chunk >= 1 && chunk <= group, why);
            EXPECT(chunk == 1 || chunk * bytes <= budget, why);
            EXPECT(chunk == group || (chunk + 1) * bytes > budget, why);
        }
    }
}

}  // namespace

int main(int arguments, char** argument) {
    Random random(seed_of(arguments, argument));
    nothing_that_is_needed_is_overwritten(random);
    memory_is_used_again(random);
    chunks_fit_the_budget(random);
    std::printf("test_memory: passed\n");
}
