#include "kernels.hpp"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "scratch.hpp"
#include "winograd.hpp"

#if PYFLOW_HAS_X86_REGIONS
// GCC 12 takes the undefined vectors of its own AVX-512 header for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#endif

namespace pyflow::network {

namespace {

#define PYFLOW_BODY "kernels.inl"
#include "each_level.inl"

}  // namespace

const Kernels& kernels(Isa isa) {
    switch (isa) {
        case Isa::avx2:
            return avx2::table;
        case Isa::avx512:
            return avx512::table;
        case Isa::avx512_vnni:
            return avx512_vnni::table;
        case Isa::avx512_bf16:
            return avx512_bf16::table;
        case Isa::scalar:
            break;
    }
    return scalar::table;
}

int64_t prepare_scratch(const Graph& graph, const Operation& operation) {
    return PrepareScratch(graph.tensors[operation.input].channels).size() * static_cast<int64_t>(sizeof(float));
}

int64_t attend_scratch(const Graph& graph, const Operation& operation) {
    const Buffer& buffer = graph.buffer_of(operation.input);
    const int64_t tokens = int64_t{buffer.height} * buffer.width;
    const int64_t width = graph.tensors[operation.output].channels / operation.heads;
    return AttendScratch(tokens, width).size() * static_cast<int64_t>(sizeof(float));
}

}  // namespace pyflow::network
