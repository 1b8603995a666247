// What the tests share: a failure prints where and why, and ends the program.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

namespace pyflow::testing {

[[noreturn]] inline void fail(const char* file, int line, const std::string& why) {
    std::fprintf(stderr, "%s:%d: %s\n", file, line, why.c_str());
    std::exit(1);
}

// `why` is evaluated after a failure only.
#define EXPECT(holds, why)                                                                             \
    do {                                                                                               \
        if (!(holds)) ::pyflow::testing::fail(__FILE__, __LINE__, std::string(#holds) + ": " + (why)); \
    } while (false)

class Random {
  public:
    explicit Random(uint64_t seed) : engine_(seed) {}
    uint64_t bits() { return engine_(); }
    int64_t below(int64_t end) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(end)); }
    bool once_in(int64_t times) { return below(times) == 0; }
    template <class Container>
    auto& one_of(Container& container) {
        return container[static_cast<size_t>(below(static_cast<int64_t>(std::size(container))))];
    }
    // Of any deviation that fits a weight.
    float around_zero(float deviation) { return std::normal_distribution<float>(0.0f, deviation)(engine_); }

  private:
    std::mt19937_64 engine_;
};

// The first argument, or one that no run before has used; printed, so that a failure can be had again.
inline uint64_t seed_of(int arguments, char** argument) {
    const uint64_t seed = arguments > 1 ? std::strtoull(argument[1], nullptr, 10) : std::random_device{}();
    std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
    std::fflush(stdout);
    return seed;
}

}  // namespace pyflow::testing
