// When the operations of a network run, and where their activations live.
#pragma once

#include "graph.hpp"

namespace pyflow::network {

// How many pictures a buffer holds at once: one for each distinct condition of the batch, a chunk's, or a group's.
enum class Span : uint8_t { conditions, chunk, group };

// Operations, by their index, that follow one another on pictures of one height. They run chunk by chunk over a group's
// pictures: all of them on the first chunk, then all of them on the next.
struct Stage {
    std::vector<uint32_t> operations;
};

struct Schedule {
    std::vector<uint32_t> conditions;  // operations that run before all stages, once for each distinct condition
    std::vector<Stage> stages;         // every other operation, in the file's order
    std::vector<Span> spans;           // of each buffer
};

Schedule schedule(const Graph& graph);

constexpr int64_t kChunkBytes = 768 << 10;  // of an L2 cache, beside the weights
constexpr double kChunkOfWeights = 0.25;    // a chunk reads all weights of its stage: many are worth more pictures

// For each stage the most pictures, from 1 to `group`, whose buffers of a chunk stay within `budget` bytes, or within
// that share of the stage's weights.
std::vector<int64_t> default_chunks(const Graph& graph, const Schedule& schedule, int64_t group,
                                    int64_t budget = kChunkBytes, double of_weights = kChunkOfWeights);

// The most pictures, from 1 to 16, whose buffers that outlive a stage have fewer bytes than the weights.
int64_t default_group(const Graph& graph, const Schedule& schedule);

// Two arenas, because conditions outlive the groups that read them. Both want to start at a multiple of 64.
struct Layout {
    std::vector<uint64_t> offsets;  // of each buffer in its arena, a multiple of 64: the border's first byte
    uint64_t condition_bytes = 0;   // the arena of buffers that span conditions
    uint64_t group_bytes = 0;       // the arena of all others
};

// Buffers that are never needed at the same time share memory; 64 bytes lie between others, and behind the last.
// `chunks` has the pictures of a chunk for each stage, none more than `group`.
Layout lay_out(const Graph& graph, const Schedule& schedule, int64_t group, const std::vector<int64_t>& chunks,
               int64_t conditions);

// Of one picture, borders included.
int64_t bytes_of(const Buffer& buffer);

}  // namespace pyflow::network
