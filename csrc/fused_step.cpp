#include "fused_step.hpp"

#include <cstring>

namespace pyflow {

namespace {

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
