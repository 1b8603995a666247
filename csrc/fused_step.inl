// The loops of fused_step, compiled once for each instruction set by each_isa.inl.

inline const float* at(const float* operand, int64_t begin) { return operand ? operand + begin : nullptr; }

// Each product and each sum is rounded on its own and in this order, as in core.py. `out` may be one of the operands:
// element i reads only elements i.
template <int count>
inline void sum_terms(const Term* terms, int64_t n, float* out) {
    const float c0 = terms[0].coefficient, c1 = count > 1 ? terms[1].coefficient : 0.0f;
    const float c2 = count > 2 ? terms[2].coefficient : 0.0f, c3 = count > 3 ? terms[3].coefficient : 0.0f;
    const float *v0 = terms[0].operand, *v1 = terms[1].operand, *v2 = terms[2].operand, *v3 = terms[3].operand;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
        float sum = c0 * v0[i];
        if constexpr (count > 1) sum += c1 * v1[i];
        if constexpr (count > 2) sum += c2 * v2[i];
        if constexpr (count > 3) sum += c3 * v3[i];
        out[i] = sum;
    }
}

inline void weighted(const Terms& terms, int64_t n, float* out) {
    switch (terms.count) {
        case 1:
            return sum_terms<1>(terms.terms, n, out);
        case 2:
            return sum_terms<2>(terms.terms, n, out);
        case 3:
            return sum_terms<3>(terms.terms, n, out);
        case 4:
            return sum_terms<4>(terms.terms, n, out);
    }
}

inline void guide(const float* cond, const float* uncond, float guidance, int64_t n, float* out) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) out[i] = uncond[i] + guidance * (cond[i] - uncond[i]);
}

inline void blend(const float* mask, const float* generated, const float* kept, int64_t n, float* out) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) out[i] = mask[i] * generated[i] + (1.0f - mask[i]) * kept[i];
}

void fused_step(const Step& step) {
    alignas(64) float p_tile[kTile], y_tile[kTile], kept_tile[kTile];
    const Row& row = step.row;
    for (int64_t begin = 0; begin < step.size; begin += kTile) {
        const int64_t n = step.size - begin < kTile ? step.size - begin : kTile;
        const float* p = step.cond + begin;
        if (step.uncond) {
            guide(p, step.uncond + begin, step.guidance, n, p_tile);
            p = p_tile;
        }
        float* out = step.out + begin;
        float* y = step.mask ? y_tile : out;
        Terms update;
        update.add(row.a, at(step.x, begin));
        update.add(row.b, p);
        update.add(row.h, at(step.previous, begin));
        update.add(row.n, at(step.noise, begin));
        weighted(update, n, y);
        if (step.mask) {
            Terms known;
            known.add(row.ka, at(step.image, begin));
            known.add(row.ks, at(step.noise0, begin));
            weighted(known, n, kept_tile);
            blend(step.mask + begin, y, kept_tile, n, out);
        }
        if (step.out_twin) std::memcpy(step.out_twin + begin, out, n * sizeof(float));
        if (step.guided) std::memcpy(step.guided + begin, p, n * sizeof(float));
    }
}
