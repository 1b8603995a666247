// prepare at each level of instruction sets, against loops in double that follow its definition.
#include <algorithm>

#include "pictures.hpp"

using namespace pyflow;
using namespace pyflow::network;
using namespace pyflow::testing;

namespace {

double silu_of(double x) { return x / (1.0 + std::exp(-x)); }

// One prepare: its arguments, and what it should make.
struct PrepareCase {
    PrepareCase(Random& random, int64_t height, int64_t width, int64_t channels, int64_t groups, int64_t upsample,
                Type type, bool with_film, bool with_silu)
        : input(1 + random.below(3), height, width, channels, random.below(3), random.below(3), random.below(2),
                Type::f32),
          output(input.count, height * upsample, width * upsample, channels, 4 * random.below(2), 4 * random.below(2),
                 random.below(3), type),
          gamma(drawn(random, channels, 1.0f)),
          beta(drawn(random, channels, 1.0f)),
          films(drawn(random, 3 * (2 * channels + 5), 0.5f)) {
        input.fill([&] { return random.around_zero(1.5f); });
        for (int64_t n = 0; n < input.count; ++n) conditions.push_back(static_cast<int32_t>(random.below(3)));
        p.input = input.view;
        p.output = output.view;
        p.gamma = groups ? gamma.data() : nullptr;
        p.beta = groups ? beta.data() : nullptr;
        p.film = with_film ? films.data() + 2 : nullptr;
        p.film_stride = 2 * channels + 5;
        p.condition = with_film ? conditions.data() : nullptr;
        p.pictures = input.count;
        p.groups = groups;
        p.upsample = upsample;
        p.epsilon = 1e-5f;
        p.scale = 0.02f;
        p.zero = 37;
        p.silu = with_silu;
    }

    void run_at(Isa isa) {
        run(kernels(isa).prepare, p, prepare_scratch(graph_of(p.input, p.output), operation_of(1)));
    }

    // Before the cast, for an output of the input's size; `size` is how large the terms are that cancel in it.
    std::vector<double> expected(int64_t n, std::vector<double>& size) const {
        const int64_t channels = p.input.channels, pixels = p.input.height * p.input.width;
        std::vector<double> values(static_cast<size_t>(channels * pixels));
        size.assign(values.size(), 1.0);
        for (int64_t c = 0; c < channels; ++c) {
            double mean = 0.0, deviation = 1.0, gain = 1.0, lift = 0.0;
            if (p.groups) {
                const int64_t width = channels / p.groups, begin = c / width * width;
                double squares = 0.0;
                each_of(n, begin, width, [&](double x) { mean += x / static_cast<double>(width * pixels); });
                each_of(n, begin, width, [&](double x) { squares += (x - mean) * (x - mean); });
                deviation = std::sqrt(squares / static_cast<double>(width * pixels) + p.epsilon);
                gain = p.gamma[c];
                lift = p.beta[c];
            }
            const float* film = p.film ? p.film + p.condition[n] * p.film_stride : nullptr;
            for (int64_t i = 0; i < pixels; ++i) {
                const double x = input.value(n, i / p.input.width, i % p.input.width, c);
                double y = (x - mean) / deviation * gain + lift;
                double large = std::abs(x / deviation * gain) + std::abs(mean / deviation * gain) + std::abs(lift);
                if (film) {
                    y = y * (1.0 + film[c]) + film[channels + c];
                    large = large * (1.0 + std::abs(film[c])) + std::abs(film[channels + c]);
                }
                values[static_cast<size_t>(i * channels + c)] = p.silu ? silu_of(y) : y;
                size[static_cast<size_t>(i * channels + c)] = large;
            }
        }
        return values;
    }
    template <class Do>
    void each_of(int64_t n, int64_t begin, int64_t width, Do what) const {
        for (int64_t i = 0; i < p.input.height * p.input.width; ++i)
            for (int64_t c = begin; c < begin + width; ++c)
                what(input.value(n, i / p.input.width, i % p.input.width, c));
    }

    void expect_right(double tolerance) const {
        std::vector<double> size, wanted;
        output.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
            if (y + x + c == 0) wanted = expected(n, size);
            const auto at =
                static_cast<size_t>((y / p.upsample * p.input.width + x / p.upsample) * p.input.channels + c);
            const double came = output.value(n, y, x, c);
            double value = wanted[at], most = tolerance * (1.0 + size[at]);
            if (p.output.type == Type::bf16) most += std::abs(value) / 256;
            if (p.output.type == Type::u8) {
                value = std::min(std::max(value / p.scale + p.zero, 0.0), 255.0);
                most = 0.5 + most / p.scale;
            }
            EXPECT(std::abs(came - value) <= most,
                   std::to_string(came) + " instead of " + std::to_string(value) + ", " + text());
        });
    }

    std::string text() const {
        return std::to_string(p.input.height) + "x" + std::to_string(p.input.width) + "x" +
               std::to_string(p.input.channels) + ", " + std::to_string(p.groups) + " groups, upsample " +
               std::to_string(p.upsample) + ", silu " + std::to_string(p.silu) + ", film " +
               std::to_string(p.film != nullptr) + ", type " + std::to_string(static_cast<int>(p.output.type));
    }

    Pictures input, output;
    std::vector<float> gamma, beta, films;
    std::vector<int32_t> conditions;
    Prepare p{};
};

PrepareCase any_prepare(Random& random, Type type) {
    const bool norm = random.below(2);
    const bool large = random.once_in(8);
    const int64_t channels = norm ? 8 * (1 + random.below(18)) : 1 + random.below(70);
    constexpr int64_t groups[] = {1, 2, 4, 8};
    const int64_t height = large ? 20 + random.below(60) : 1 + random.below(9);
    const int64_t width = large ? 20 + random.below(60) : 1 + random.below(9);
    return PrepareCase(random, height, width, channels, norm ? random.one_of(groups) : 0, 1 + random.below(2), type,
                       random.below(2), random.below(2));
}

void prepare_follows_its_definition(Random& random, Isa isa) {
    for (int i = 0; i < 120; ++i) {
        PrepareCase made = any_prepare(random, static_cast<Type>(random.below(3)));
        made.run_at(isa);
        made.expect_right(1e-6);
        made.output.expect_rest_untouched(true);
        made.output.expect_border(made.p.output.type == Type::u8 ? made.p.zero : 0.0);
        made.input.expect_rest_untouched(false);
    }
}

void prepare_works_each_picture_alone(Random& random, Isa isa) {
    for (int i = 0; i < 40; ++i) {
        PrepareCase made = any_prepare(random, static_cast<Type>(random.below(3)));
        made.run_at(isa);
        const Prepare whole = made.p;
        for (int64_t n = 0; n < whole.pictures; ++n) {
            const View& like = whole.output;
            Pictures alone(1, like.height, like.width, like.channels, 0, 0, like.border, like.type);
            made.p.pictures = 1;
            made.p.input = made.input.from(n);
            made.p.output = alone.view;
            made.p.condition = whole.condition ? whole.condition + n : nullptr;
            made.run_at(isa);
            EXPECT(alone.written(0) == made.output.written(n), "picture " + std::to_string(n) + ", " + made.text());
        }
    }
}

// Without fused multiply-adds two more roundings of a value of 1000 remain.
void norms_keep_their_digits(Random& random, Isa isa) {
    for (const bool outlier : {false, true}) {
        PrepareCase made(random, 32, 32, 64, outlier ? 8 : 64, 1, Type::f32, false, false);
        made.input.fill([&] { return outlier ? random.around_zero(1.0f) : 100.0f + random.around_zero(0.1f); });
        for (int64_t c = 0; c < 64; ++c) {
            if (outlier) made.input.at(0, 0, 0, c) = 100.0f;
            made.gamma[static_cast<size_t>(c)] = 1.0f;
            made.beta[static_cast<size_t>(c)] = 0.0f;
        }
        made.run_at(isa);
        std::vector<double> size;
        std::vector<double> wanted = made.expected(0, size);
        made.output.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
            if (n) return;
            const double value = wanted[static_cast<size_t>((y * 32 + x) * 64 + c)],
                         came = made.output.value(n, y, x, c);
            const double most = outlier ? 1e-6 * (1.0 + std::abs(value)) : isa == Isa::scalar ? 2e-4 : 1e-4;
            EXPECT(std::abs(came - value) <= most, std::to_string(came) + " instead of " + std::to_string(value));
        });
    }
}

void a_nan_spoils_its_group(Random& random, Isa isa) {
    for (const Type type : {Type::f32, Type::bf16, Type::u8})
        for (const int64_t groups : {int64_t{0}, int64_t{8}}) {
            PrepareCase made(random, 5, 6, 40, groups, 1, type, false, random.below(2));
            const int64_t n = made.input.count - 1;
            made.input.at(n, 3, 4, 13) = kNaN;
            made.run_at(isa);
            made.output.each([&](int64_t i, int64_t y, int64_t x, int64_t c) {
                const bool spoiled = i == n && (groups ? c / 5 == 13 / 5 : y == 3 && x == 4 && c == 13);
                const double came = made.output.value(i, y, x, c);
                const std::string why = std::to_string(came) + ", " + made.text();
                EXPECT(type == Type::u8 ? !spoiled || came == 255.0 : std::isnan(came) == spoiled, why);
            });
        }
}

void silu_is_right_everywhere(Random& random, Isa isa) {
    PrepareCase made(random, 64, 64, 60, 0, 1, Type::f32, false, true);
    made.input.fill([&] { return std::ldexp(random.around_zero(1.0f), static_cast<int>(random.below(8))); });
    const float extremes[] = {-200.0f, 200.0f, -1e30f, 1e30f, -kInfinity, kInfinity,
                              -88.0f,  -87.0f, 0.0f,   3e38f, -3e38f};
    for (size_t i = 0; i < std::size(extremes); ++i) made.input.at(0, 0, 0, static_cast<int64_t>(i)) = extremes[i];
    made.run_at(isa);
    made.output.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
        const double from = made.input.value(n, y, x, c), came = made.output.value(n, y, x, c);
        const double wanted = from == -kInfinity ? 0.0 : silu_of(from);
        EXPECT(came == wanted || std::abs(came - wanted) <= 2e-7 * std::abs(wanted) + 5e-8,
               "silu(" + std::to_string(from) + ") is " + std::to_string(came));
    });
}

}  // namespace

int main(int arguments, char** argument) {
    Random random(seed_of(arguments, argument));
    for (const Isa isa : supported_isas()) {
        std::printf("%s\n", name_of(isa));
        prepare_follows_its_definition(random, isa);
        prepare_works_each_picture_alone(random, isa);
        norms_keep_their_digits(random, isa);
        a_nan_spoils_its_group(random, isa);
        silu_is_right_everywhere(random, isa);
    }
}
