#include "fused_step.hpp"

#include <cstring>

namespace pyflow {

namespace {

// The state is worked in tiles that stay in the L1 cache, one pass a formula, with zero terms left out by a branch a
// tile. A single pass, specialised for each of the 60 sets of non-zero terms, took 5 to 14% less on 48 kB a term and 5
// to 22% less on 25 MB (all terms: 7.5 against 9.4 ms; Zen 5, AVX-512): not worth 60 loops beside a network's time.
constexpr int64_t kTile = 1024;

struct Term {
    float coefficient;
    const float* operand;
};

// The terms of a weighted sum that are not zero. A coefficient is compared before it is rounded to float, as core.py
// does.
struct Terms {
    Term terms[4] = {};
    int count = 0;

    void add(double coefficient, const float* operand) {
        if (coefficient != 0.0) terms[count++] = {static_cast<float>(coefficient), operand};
    }
};

#define PYFLOW_BODY "fused_step.inl"
#include "each_isa.inl"

}  // namespace

void fused_step(const Step& step, Isa isa) {
    pick(isa, scalar::fused_step, avx2::fused_step, avx512::fused_step)(step);
}

}  // namespace pyflow
