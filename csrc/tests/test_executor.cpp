// The executor: what it predicts for a picture depends on nothing but the picture, and a run allocates nothing.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "../errors.hpp"
#include "../network/executor.hpp"
#include "network_builder.hpp"

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && defined(__GLIBC__)
#define PYFLOW_COUNTS_ALLOCATIONS 1
#else
#define PYFLOW_COUNTS_ALLOCATIONS 0  // sanitizers have a malloc of their own
#endif

namespace {
std::atomic<bool> counting{false};
std::atomic<int64_t> allocations{0};
}  // namespace

#if PYFLOW_COUNTS_ALLOCATIONS
extern "C" {
void* __libc_malloc(size_t size);
void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) {
    if (counting) ++allocations;
    return __libc_malloc(size);
}
void* aligned_alloc(size_t alignment, size_t size) {
    if (counting) ++allocations;
    return __libc_memalign(alignment, size);
}
}
#endif

namespace pyflow::testing {

namespace {

using namespace network;

constexpr int64_t kPictures = 37;  // several groups for one thread

// Random pictures, times and labels for a network, and a place for its predictions.
struct Batch {
    Batch(Random& random, const NetworkFile& network, int64_t count, bool one_time)
        : given(network.given()),
          size(int64_t{network.header.channels} * network.header.height * network.header.width),
          x(count * given),
          s(count),
          t(count),
          out(count * size),
          label(count) {
        for (float& value : x) value = random.around_zero(1.0f);
        for (size_t i = 0; i < s.size(); ++i) {
            s[i] = one_time && i > 0 ? s[0] : random.around_zero(0.5f);
            t[i] = one_time && i > 0 ? t[0] : random.around_zero(0.5f);
            label[i] = random.below(int64_t{network.header.classes} + 1);
        }
        poison();
    }

    Buffers part(int64_t first, int64_t count) {
        return {count, &x[first * given], &s[first], &t[first], &label[first], &out[first * size], nullptr};
    }
    void poison() { std::fill(out.begin(), out.end(), std::numeric_limits<float>::quiet_NaN()); }
    bool finite() const {
        return std::all_of(out.begin(), out.end(), [](float value) { return std::isfinite(value); });
    }

    int64_t given, size;  // numbers of a picture: of x, and of its prediction
    std::vector<float> x, s, t, out;
    std::vector<int64_t> label;
};

// What the last stage reads was made by the first: a sum's other tensor, and a prepared one. A group's pictures are
// more than a chunk's.
NetworkFile across_stages(Random& random) {
    Builder builder(random, 3, 16, 16, 2);
    Builder::Prepared filmed, raised;
    filmed.border = 0;
    filmed.film = builder.condition(32);
    raised.upsample = 2;
    const uint32_t early = builder.project("early", builder.project("wide", builder.load(0), 64), 16);
    const uint32_t kept = builder.prepare("kept", early, filmed);
    const uint32_t down =
        builder.convolve("down", builder.prepare("down.in", early, {}), builder.pixels(8, 8, 16), {}, 3, 2);
    const uint32_t up =
        builder.convolve("up", builder.prepare("up.in", down, raised), builder.pixels(16, 16, 16), {}, 3, 1, early);
    builder.store(builder.project("leave", kept, 3, false, builder.project("narrow", up, 3)));
    return builder.file();
}

// Every picture is worth a thread.
std::unique_ptr<NetworkDenoiser> denoiser_of(const File& file, Isa isa, int threads, bool profile = false) {
    return std::make_unique<NetworkDenoiser>(file.data(), file.size(), nullptr, isa, threads, profile, 0.0);
}

void expect_same(const std::vector<float>& came, const std::vector<float>& expected, const std::string& what) {
    for (size_t i = 0; i < came.size(); ++i)
        EXPECT(std::memcmp(&came[i], &expected[i], sizeof(float)) == 0,
               what + ": value " + std::to_string(i) + " is " + std::to_string(came[i]) + " and " +
                   std::to_string(expected[i]) + " of the picture alone");
}

// Each picture alone, on one thread.
std::vector<float> alone(const NetworkDenoiser& denoiser, Batch& batch) {
    batch.poison();
    for (size_t i = 0; i < batch.s.size(); ++i) denoiser.bind(batch.part(static_cast<int64_t>(i), 1))->run();
    EXPECT(batch.finite(), "a prediction is not finite: something was read before it was written");
    return batch.out;
}

void test_predictions_belong_to_the_picture(const NetworkFile& network, Random& random) {
    const File file(network.content());
    for (Isa isa : supported_isas())
        for (const bool one_time : {true, false}) {
            Batch batch(random, network, kPictures, one_time);
            const std::vector<float> expected = alone(*denoiser_of(file, isa, 1), batch);
            for (int threads : {1, 2, 4}) {
                const auto denoiser = denoiser_of(file, isa, threads);
                for (int64_t count : {int64_t{1}, int64_t{3}, int64_t{16}, kPictures}) {
                    batch.poison();
                    const auto bound = denoiser->bind(batch.part(0, count));
                    for (int again = 0; again < 2; ++again) {
                        bound->run();
                        expect_same({batch.out.begin(), batch.out.begin() + count * batch.size},
                                    {expected.begin(), expected.begin() + count * batch.size},
                                    std::string(name_of(isa)) + ", " + std::to_string(threads) + " threads, batch " +
                                        std::to_string(count) + (one_time ? "" : ", times of their own"));
                    }
                }
            }
        }
}

void test_times_may_change_their_kind(const NetworkFile& network, Random& random) {
    const File file(network.content());
    const auto denoiser = denoiser_of(file, supported_isas().back(), 2);
    Batch batch(random, network, 7, false);
    const auto bound = denoiser->bind(batch.part(0, 7));
    bound->run();
    std::fill(batch.s.begin(), batch.s.end(), 0.25f);
    std::fill(batch.t.begin(), batch.t.end(), 0.75f);
    const std::vector<float> expected = alone(*denoiser, batch);
    batch.poison();
    bound->run();
    expect_same(batch.out, expected, "one time after times of their own");
}

// Of other batches, so that how one was cut is never what another may use.
void test_many_callers(const NetworkFile& network, Random& random) {
    const File file(network.content());
    const auto denoiser = denoiser_of(file, supported_isas().back(), 2);
    std::vector<Batch> batches;
    std::vector<std::vector<float>> expected;
    for (int caller = 0; caller < 5; ++caller) {
        batches.emplace_back(random, network, 4 + caller, true);
        expected.push_back(alone(*denoiser, batches.back()));
        batches.back().poison();
    }
    std::vector<std::thread> callers;
    for (Batch& batch : batches)
        callers.emplace_back([&] {
            for (int again = 0; again < 5; ++again) {
                const auto bound = denoiser->bind(batch.part(0, static_cast<int64_t>(batch.s.size())));
                bound->run();
                bound->run();
            }
        });
    for (std::thread& caller : callers) caller.join();
    for (size_t i = 0; i < batches.size(); ++i) expect_same(batches[i].out, expected[i], "many callers");
}

// Whatever a run of another batch has left in it.
void test_memory_is_left_to_the_next_run(const NetworkFile& network, Random& random) {
    const File file(network.content());
    Batch batch(random, network, kPictures, true);
    const std::vector<float> expected = alone(*denoiser_of(file, supported_isas().back(), 1), batch);
    const auto denoiser = denoiser_of(file, supported_isas().back(), 2);
    int64_t kept = 0;
    for (const int64_t count : {int64_t{1}, kPictures, int64_t{3}, kPictures, kPictures}) {
        batch.poison();
        denoiser->bind(batch.part(0, count))->run();
        expect_same({batch.out.begin(), batch.out.begin() + count * batch.size},
                    {expected.begin(), expected.begin() + count * batch.size}, "in memory of before");
        EXPECT(denoiser->arenas().bytes() >= kept, "less is kept than before");
        kept = denoiser->arenas().bytes();
    }
    const int64_t most = 3 * denoiser->workspace_bytes(kPictures);
    EXPECT(kept >= denoiser->workspace_bytes(kPictures) && kept <= most, std::to_string(kept) + " bytes are kept");
    denoiser->bind(batch.part(0, kPictures))->run();
    EXPECT(denoiser->arenas().bytes() == kept, "the same batch took memory anew");
}

void test_arenas() {
    Arenas arenas(2);
    Arena small(100), large(300);
    const uint8_t* of_large = large.get();
    arenas.give(std::move(large));
    arenas.give(std::move(small));
    EXPECT(arenas.bytes() == 400, "not both are kept");
    Arena taken = arenas.take(200);
    EXPECT(taken.get() == of_large && taken.bytes() == 300 && arenas.bytes() == 100, "not the smallest that is enough");
    arenas.give(std::move(taken));
    arenas.give(Arena(200));
    EXPECT(arenas.bytes() == 500, "not the largest are kept");
    const Arena fresh = arenas.take(400);
    EXPECT(std::count(fresh.get(), fresh.get() + 400, 0xff) == 400 && arenas.bytes() == 500, "fresh memory is no NaN");
}

void test_a_run_allocates_nothing(const NetworkFile& network, Random& random) {
    const File file(network.content());
    for (const int threads : {1, 2})
        for (const bool profile : {false, true}) {
            const auto denoiser = denoiser_of(file, supported_isas().back(), threads, profile);
            Batch batch(random, network, 20, true);
            const auto bound = denoiser->bind(batch.part(0, 20));
            bound->run();        // starts the threads
            batch.s[0] = -1.0f;  // and then the times differ
            for (int again = 0; again < 2; ++again) {
                allocations = 0;
                counting = true;
                bound->run();
                counting = false;
                EXPECT(allocations == 0, std::to_string(allocations) + " allocations in a run");
                std::fill(batch.s.begin(), batch.s.end(), 0.5f);
                std::fill(batch.t.begin(), batch.t.end(), 0.5f);
            }
        }
}

template <class Error, class Work>
std::string thrown(Work work) {
    try {
        work();
    } catch (const Error& error) {
        return error.what();
    }
    return "nothing";
}

void test_it_refuses(const NetworkFile& network, Random& random) {
    const File file(network.content());
    const auto denoiser = denoiser_of(file, Isa::scalar, 1);
    Batch batch(random, network, 3, true);
    for (const int64_t wrong : {int64_t{-1}, int64_t{network.header.classes} + 1}) {
        batch.label = {0, wrong, 0};
        const std::string said = thrown<InvalidInput>([&] { denoiser->bind(batch.part(0, 3)); });
        EXPECT(said.find("a label is " + std::to_string(wrong) + "; expected 0 to ") != std::string::npos, said);
    }
    const std::string said = thrown<InvalidInput>([&] { denoiser->workspace_bytes(0); });
    EXPECT(said == "batch is 0; expected 1 or more", said);
}

void test_it_keeps_its_bytes(const NetworkFile& network, Random& random) {
    auto file = std::make_shared<File>(network.content());
    const std::weak_ptr<File> watched = file;
    const uint8_t* data = file->data();
    const size_t size = file->size();
    auto denoiser = std::make_unique<NetworkDenoiser>(data, size, std::move(file), Isa::scalar, 1, false);
    EXPECT(!watched.expired(), "the bytes are gone before the denoiser");
    Batch batch(random, network, 2, true);
    denoiser->bind(batch.part(0, 2))->run();
    EXPECT(batch.finite(), "not finite");
    denoiser.reset();
    EXPECT(watched.expired(), "the bytes outlive the denoiser");
}

void test_the_profile(const NetworkFile& network, Random& random) {
    const File file(network.content());
    const auto denoiser = denoiser_of(file, supported_isas().back(), 2, true);
    Batch batch(random, network, 4, true);
    const auto bound = denoiser->bind(batch.part(0, 4));
    for (int again = 0; again < 3; ++again) bound->run();
    const std::vector<NetworkDenoiser::Row> rows = denoiser->take_profile();
    EXPECT(rows.size() == network.operations.size(), std::to_string(rows.size()) + " rows");
    for (size_t i = 0; i < rows.size(); ++i) {
        EXPECT(rows[i].name == network.operations[i].name, rows[i].name);
        EXPECT(rows[i].calls >= 3 && rows[i].seconds > 0.0, rows[i].name + " was not counted");
    }
    EXPECT(rows.back().kind == "store" && rows.back().calls >= 6, "two groups, three runs");
    for (const NetworkDenoiser::Row& row : denoiser->take_profile()) EXPECT(row.calls == 0, "taken twice");
    EXPECT(denoiser_of(file, Isa::scalar, 1)->take_profile().empty(), "a profile that nobody asked for");
}

// ---- threads
struct Tally {
    std::vector<std::atomic<int>> calls;
    Threads* threads = nullptr;
    explicit Tally(size_t pieces) : calls(pieces) {}
    void expect_once() const {
        for (const auto& count : calls) EXPECT(count == 1, std::to_string(count) + " calls of a piece");
    }
};

void count(void* context, int64_t piece) { ++static_cast<Tally*>(context)->calls[piece]; }

void count_inside(void* context, int64_t piece) {
    auto& outer = *static_cast<Tally*>(context);
    Tally inner(3);
    outer.threads->parallel(3, count, &inner);
    inner.expect_once();
    ++outer.calls[piece];
}

void fail_at_two(void* context, int64_t piece) {
    count(context, piece);
    if (piece == 2) throw InvalidInput("piece 2");
    if (piece > 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

// Ends when two threads are in it at once.
void meet(void* context, int64_t piece) {
    auto& tally = *static_cast<Tally*>(context);
    ++tally.calls[piece];
    while (tally.calls[1 - piece] == 0) std::this_thread::yield();
}

void test_threads() {
    for (int helpers : {1, 2, 4}) {
        Threads threads(helpers);
        for (int64_t pieces : {0, 1, 2, 3, 100}) {
            Tally tally(pieces), outer(pieces);
            threads.parallel(pieces, count, &tally);
            tally.expect_once();
            outer.threads = &threads;
            threads.parallel(pieces, count_inside, &outer);
            outer.expect_once();
        }
        Tally tally(2000);
        const std::string said = thrown<InvalidInput>([&] { threads.parallel(2000, fail_at_two, &tally); });
        EXPECT(said == "piece 2", said);
        EXPECT(tally.calls.back() == 0, "after a failure all pieces were worked on");
        Tally after(4);
        threads.parallel(4, count, &after);
        after.expect_once();
    }
    Threads two(2);
    for (int again = 0; again < 3; ++again) {
        Tally meeting(2);
        two.parallel(2, meet, &meeting);
    }
    EXPECT(Threads(0).count() >= 1, "no processor");

    // Threads do not survive a fork: the child works alone, and ends.
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        {
            Tally tally(8);
            two.parallel(8, count, &tally);
            tally.expect_once();
            two.~Threads();
        }
        _exit(0);
    }
    int status = 0;
    EXPECT(waitpid(child, &status, 0) == child && status == 0, "the child ended with " + std::to_string(status));
}

}  // namespace

}  // namespace pyflow::testing

int main(int arguments, char** argument) {
    using namespace pyflow::testing;
    Random random(seed_of(arguments, argument));
    test_threads();
    test_arenas();
    const NetworkFile points = mlp(random, 40, 3, 4), pictures = unet(random, 8, 8, false), any = any_network(random);
    test_predictions_belong_to_the_picture(across_stages(random), random);
    for (const NetworkFile* network : {&points, &pictures, &any}) {
        test_predictions_belong_to_the_picture(*network, random);
        test_times_may_change_their_kind(*network, random);
        test_many_callers(*network, random);
        test_memory_is_left_to_the_next_run(*network, random);
        test_a_run_allocates_nothing(*network, random);
        test_the_profile(*network, random);
    }
    test_it_refuses(pictures, random);
    test_it_keeps_its_bytes(pictures, random);
    std::printf("test_executor: all pass\n");
}
