// attend, waves, load and store at each level of instruction sets, against loops in double that follow their
// definitions.
#include <algorithm>

#include "pictures.hpp"

using namespace pyflow;
using namespace pyflow::network;
using namespace pyflow::testing;

namespace {

struct AttendCase {
    AttendCase(Random& random, int64_t height, int64_t width, int64_t head_count, int64_t width_of_head, float spread)
        : heads(head_count),
          features(width_of_head),
          input(1 + random.below(3), height, width, 3 * heads * features, random.below(3), random.below(3),
                random.below(2), Type::f32),
          output(input.count, height, width, heads * features, random.below(3), random.below(3), random.below(2),
                 Type::f32) {
        input.fill([&] { return random.around_zero(spread); });
    }

    void run_at(Isa isa, const View& from, const View& to, int64_t pictures, Type products = Type::f32) const {
        run(kernels(isa).attend, Attend{from, to, pictures, heads, nullptr, products},
            attend_scratch(graph_of(from, to), operation_of(heads)));
    }

    // The output of one head at one token.
    std::vector<double> expected(int64_t n, int64_t head, int64_t token) const {
        const int64_t tokens = input.view.height * input.view.width, channels = heads * features;
        std::vector<double> weights(static_cast<size_t>(tokens), 0.0), mixed(static_cast<size_t>(features), 0.0);
        for (int64_t j = 0; j < tokens; ++j) {
            for (int64_t k = 0; k < features; ++k)
                weights[static_cast<size_t>(j)] +=
                    of(n, token, head * features + k) * of(n, j, channels + head * features + k);
            weights[static_cast<size_t>(j)] /= std::sqrt(static_cast<double>(features));
        }
        const double most = *std::max_element(weights.begin(), weights.end());
        double total = 0.0;
        for (double& weight : weights) total += weight = std::exp(weight - most);
        for (int64_t j = 0; j < tokens; ++j)
            for (int64_t k = 0; k < features; ++k)
                mixed[static_cast<size_t>(k)] +=
                    weights[static_cast<size_t>(j)] / total * of(n, j, 2 * channels + head * features + k);
        return mixed;
    }
    double of(int64_t n, int64_t token, int64_t channel) const {
        return input.value(n, token / input.view.width, token % input.view.width, channel);
    }

    std::string text() const {
        return std::to_string(input.view.height) + "x" + std::to_string(input.view.width) + ", " +
               std::to_string(heads) + " heads of " + std::to_string(features);
    }

    int64_t heads, features;
    Pictures input, output;
};

AttendCase any_attend(Random& random, float spread) {
    const bool large = random.once_in(6);
    const int64_t height = large ? 10 + random.below(10) : 1 + random.below(8);
    const int64_t width = large ? 10 + random.below(10) : 1 + random.below(8);
    return AttendCase(random, height, width, 1 + random.below(3), 1 + random.below(70), spread);
}

void attend_follows_its_definition(Random& random, Isa isa) {
    for (int i = 0; i < 40; ++i) {
        const bool peaked = random.once_in(4);
        AttendCase made = any_attend(random, peaked ? 6.0f : 1.0f);
        made.run_at(isa, made.input.view, made.output.view, made.input.count);
        std::vector<double> wanted;
        made.output.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
            if (c % made.features == 0) wanted = made.expected(n, c / made.features, y * made.output.view.width + x);
            const double came = made.output.value(n, y, x, c), value = wanted[static_cast<size_t>(c % made.features)];
            EXPECT(std::abs(came - value) <= (peaked ? 1e-3 : 5e-6),
                   std::to_string(came) + " instead of " + std::to_string(value) + ", " + made.text());
        });
        made.output.expect_rest_untouched(false);
        for (int64_t n = 0; n < made.input.count; ++n) {
            Pictures alone(1, made.output.view.height, made.output.view.width, made.output.view.channels, 0, 0, 0,
                           Type::f32);
            made.run_at(isa, made.input.from(n), alone.view, 1);
            alone.each([&](int64_t, int64_t y, int64_t x, int64_t c) {
                EXPECT(alone.at(0, y, x, c) == made.output.at(n, y, x, c), "alone and in a batch, " + made.text());
            });
        }
    }
}

// Their products in bfloat16, in pairs of tokens and of a head's channels.
void lower_products_are_near(Random& random, Isa isa) {
    for (int i = 0; i < 20; ++i) {
        AttendCase made(random, 1 + random.below(9), 2 * (1 + random.below(8)), 1 + random.below(3),
                        2 * (1 + random.below(30)), 1.0f);
        made.run_at(isa, made.input.view, made.output.view, made.input.count, Type::bf16);
        std::vector<double> wanted;
        made.output.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
            if (c % made.features == 0) wanted = made.expected(n, c / made.features, y * made.output.view.width + x);
            const double came = made.output.value(n, y, x, c), value = wanted[static_cast<size_t>(c % made.features)];
            EXPECT(std::abs(came - value) <= 3e-2, std::to_string(came) + " instead of " + std::to_string(value));
        });
        made.output.expect_rest_untouched(false);
    }
}

void a_nan_spoils_its_head(Random& random, Isa isa, Type products) {
    for (int64_t part = 0; part < 3; ++part) {
        AttendCase made(random, 5, 6, 2, 20, 1.0f);
        const int64_t n = made.input.count - 1, feature = random.below(20), token = random.below(30);
        made.input.at(n, token / 6, token % 6, part * 40 + 20 + feature) = kNaN;
        made.run_at(isa, made.input.view, made.output.view, made.input.count, products);
        made.output.each([&](int64_t i, int64_t y, int64_t x, int64_t c) {
            const bool query = part > 0 || y * 6 + x == token, value = part < 2 || c == 20 + feature;
            EXPECT(std::isnan(made.output.at(i, y, x, c)) == (i == n && c >= 20 && query && value),
                   "part " + std::to_string(part));
        });
    }
}

void waves_are_sines(Random& random, Isa isa) {
    for (int64_t times = 1; times <= 2; ++times) {
        Pictures output(5, 1, 1, 64 * times, 0, 0, 0, Type::f32);
        std::vector<float> s(5), t(5), waves(64), phases(64);
        for (size_t k = 0; k < 64; ++k) {
            waves[k] = 0.1f * std::pow(1000.0f, static_cast<float>(k % 32) / 31.0f);
            phases[k] = k < 32 ? 0.0f : 1.57079633f;
        }
        for (size_t i = 0; i < 5; ++i) {
            s[i] = static_cast<float>(random.below(1001)) / 1000.0f;
            t[i] = static_cast<float>(random.below(1001)) / 1000.0f;
        }
        s[0] = 1.0f;
        t[0] = -1.04f;
        kernels(isa).waves({s.data(), t.data(), waves.data(), phases.data(), times, 5, output.view});
        output.each([&](int64_t n, int64_t, int64_t, int64_t c) {
            const auto k = static_cast<size_t>(c % 64);
            const float angle = (c < 64 ? s : t)[static_cast<size_t>(n)] * waves[k] + phases[k];
            const double wanted = std::sin(static_cast<double>(angle)), came = output.value(n, 0, 0, c);
            EXPECT(std::abs(came - wanted) <= 2e-7, "sin(" + std::to_string(angle) + ") is " + std::to_string(came));
        });
        output.expect_rest_untouched(false);
    }
}

void copies_are_exact(Random& random, Isa isa) {
    for (int i = 0; i < 60; ++i) {
        const int64_t channels = 1 + random.below(i % 2 ? 5 : 40), height = 1 + random.below(12);
        const int64_t width = 1 + random.below(40), count = 1 + random.below(3);
        const auto size = static_cast<size_t>(count * channels * height * width);
        const std::vector<float> pictures = drawn(random, static_cast<int64_t>(size), 1.0f);
        const auto from = [&](int64_t n, int64_t y, int64_t x, int64_t c) {
            return static_cast<size_t>(((n * channels + c) * height + y) * width + x);
        };
        Pictures loaded(count, height, width, channels, random.below(3), random.below(3), random.below(3), Type::f32);
        kernels(isa).load({const_cast<float*>(pictures.data()), loaded.view, count});
        loaded.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
            EXPECT(loaded.at(n, y, x, c) == pictures[from(n, y, x, c)], "loaded");
        });
        loaded.expect_border(0.0);
        loaded.expect_rest_untouched(true);
        Memory stored(static_cast<int64_t>(size * sizeof(float)));
        kernels(isa).store({reinterpret_cast<float*>(stored.data()), loaded.view, count});
        EXPECT(std::memcmp(stored.data(), pictures.data(), size * sizeof(float)) == 0, "stored");
        EXPECT(stored.guarded(), "written beside the pictures");
    }
}

}  // namespace

int main(int arguments, char** argument) {
    Random random(seed_of(arguments, argument));
    for (const Isa isa : supported_isas()) {
        std::printf("%s\n", name_of(isa));
        attend_follows_its_definition(random, isa);
        lower_products_are_near(random, isa);
        for (Type products : {Type::f32, Type::bf16}) a_nan_spoils_its_head(random, isa, products);
        waves_are_sines(random, isa);
        copies_are_exact(random, isa);
    }
}
