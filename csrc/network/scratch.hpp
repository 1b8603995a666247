// How prepare and attend cut their scratch, for the kernels and for those who reserve it. Sizes are in floats.
#pragma once

#include <algorithm>
#include <cstdint>

#include "graph.hpp"

namespace pyflow::network {

constexpr int64_t kWidest = 16;  // lanes of the widest vector: rows of scratch are whole vectors

inline int64_t whole_vectors(int64_t floats) { return (floats + kWidest - 1) / kWidest * kWidest; }

// Five rows, each with a float for every channel: the mean (the second row is what the first one rounds away), the sum
// of squared deviations from it, and what a pixel is multiplied by and what is added.
struct PrepareScratch {
    explicit PrepareScratch(int64_t channels) : row(whole_vectors(channels)) {}

    int64_t row;
    int64_t size() const { return 5 * row; }
};

// One head of one picture: keys and values as packed weights, and a block of queries with their scores and results.
struct AttendScratch {
    AttendScratch(int64_t token_count, int64_t width) : tokens(token_count), features(width) {
        // A block's scores stay in L1 where they can; twelve rows are what the micro-kernel takes at once.
        constexpr int64_t scores_in_l1 = 6144, rows_at_once = 12;
        block = std::max(rows_at_once, scores_in_l1 / whole_vectors(tokens) / rows_at_once * rows_at_once);
        block = std::min(block, tokens);
    }

    int64_t tokens, features, block;
    int64_t score_row() const { return whole_vectors(tokens); }
    int64_t result_row() const { return whole_vectors(features); }
    int64_t keys() const { return score_row() * features; }
    int64_t values() const { return tokens * result_row(); }
    int64_t queries() const { return whole_vectors(block * features); }
    int64_t scores() const { return block * score_row(); }
    int64_t results() const { return block * result_row(); }
    int64_t sums() const { return whole_vectors(block); }
    int64_t size() const { return keys() + values() + queries() + scores() + results() + sums(); }
};

}  // namespace pyflow::network
