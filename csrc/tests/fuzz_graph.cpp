// Spoils network files, and lays out and runs what parse still takes. fuzz_graph SECONDS [SEED]; with 0 seconds it does
// once what the seed says.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>

#include "../errors.hpp"
#include "../network/executor.hpp"
#include "../network/operations.hpp"
#include "network_file.hpp"

using namespace pyflow;
using namespace pyflow::network;
using namespace pyflow::testing;

namespace {

constexpr int64_t kMostBytes = 256 << 20;  // of a run's working set
constexpr double kMostArithmetic = 2e7;    // of a run: a tenth of a second at the slowest

class Spoiler {
  public:
    explicit Spoiler(Random& random) : random_(random) {}

    std::vector<uint8_t> spoiled(NetworkFile file) {
        const int64_t changes = 1 + random_.below(3);
        const bool keeps_tables = random_.once_in(3);
        for (int64_t i = 0; i < changes && !keeps_tables; ++i) change(file);
        std::vector<uint8_t> content = file.content();
        if (keeps_tables || random_.once_in(8)) change(content);
        return content;
    }

  private:
    template <class Record>
    void change_word(std::vector<Record>& records) {
        if (records.empty()) return;
        auto* words = reinterpret_cast<uint8_t*>(&random_.one_of(records));
        const auto* others = reinterpret_cast<const uint8_t*>(&random_.one_of(records));
        // a field that is not of the name
        const int64_t fields = std::min<int64_t>(sizeof(Record) / 4, 22), at = 4 * random_.below(fields);
        uint32_t word;
        std::memcpy(&word, words + at, 4);
        const auto choice = random_.below(5);
        if (choice == 0) word = static_cast<uint32_t>(random_.below(12));
        if (choice == 1) word += static_cast<uint32_t>(random_.below(5)) - 2;
        if (choice == 2) word ^= uint32_t{1} << random_.below(32);
        if (choice == 3) word = random_.one_of(kExtremes);
        if (choice == 4) std::memcpy(&word, others + at, 4);
        std::memcpy(words + at, &word, 4);
    }

    template <class Record>
    void splice(std::vector<Record>& records, const std::vector<Record>& others) {
        if (records.empty()) return;
        const int64_t from = random_.below(static_cast<int64_t>(others.size()));
        const int64_t to = random_.below(static_cast<int64_t>(records.size()));
        const int64_t most =
            std::min(static_cast<int64_t>(others.size()) - from, static_cast<int64_t>(records.size()) - to);
        std::copy_n(others.begin() + from, 1 + random_.below(most), records.begin() + to);
    }

    void change(NetworkFile& file) {
        std::vector<Operation>& operations = file.operations;
        const auto tensor = [&] {
            return static_cast<uint32_t>(random_.below(static_cast<int64_t>(file.tensors.size())));
        };
        switch (random_.below(12)) {
            case 0:
                return change_word(file.buffers);
            case 1:
                return change_word(file.tensors);
            case 2:
            case 3:
                return change_word(operations);
            case 4: {
                std::vector<Header> header = {file.header};
                change_word(header);
                file.header = header[0];
                return;
            }
            case 5:  // out of order
                return std::swap(random_.one_of(operations), random_.one_of(operations));
            case 6:  // a cycle, or a tensor written twice
                random_.one_of(operations).input = tensor();
                if (random_.once_in(2)) random_.one_of(operations).output = tensor();
                return;
            case 7: {
                const Operation twice = random_.one_of(operations);
                operations.insert(operations.begin() + random_.below(static_cast<int64_t>(operations.size())), twice);
                return;
            }
            case 8: {
                const NetworkFile other = any_network(random_);
                if (random_.once_in(2)) file.weights.resize(std::max(file.weights.size(), other.weights.size()));
                if (random_.once_in(2)) splice(operations, other.operations);
                if (random_.once_in(2)) splice(file.tensors, other.tensors);
                return splice(file.buffers, other.buffers);
            }
            case 9: {  // larger pictures throughout, up to absurd ones
                const auto times = static_cast<uint32_t>(1 + random_.below(random_.once_in(4) ? 600 : 3));
                file.header.height *= times;
                for (Buffer& buffer : file.buffers) buffer.height *= buffer.height > 1 ? times : 1;
                return;
            }
            case 10: {  // wider borders, where they are allowed
                Buffer& buffer = random_.one_of(file.buffers);
                if (buffer.border != 1) buffer.border = static_cast<uint32_t>(random_.below(10));
                return;
            }
            default:  // what a kernel reads in full
                for (uint8_t& byte : file.weights) byte = random_.once_in(50) ? 0xff : byte;
        }
    }

    void change(std::vector<uint8_t>& content) {
        const auto place = [&] {
            const auto size = static_cast<int64_t>(content.size());
            return random_.below(random_.once_in(3) ? size : std::min<int64_t>(size, random_.once_in(2) ? 64 : 2048));
        };
        switch (random_.below(4)) {
            case 0:
                return content.resize(static_cast<size_t>(place()));
            case 1:
                return content.resize(content.size() + static_cast<size_t>(1 + random_.below(200)));
            case 2:
                for (int64_t flips = 1 + random_.below(8); flips > 0; --flips)
                    content[static_cast<size_t>(place())] ^= static_cast<uint8_t>(1 << random_.below(8));
                return;
            default:
                content[static_cast<size_t>(place())] = static_cast<uint8_t>(random_.bits());
        }
    }

    static constexpr uint32_t kExtremes[] = {0,     64,    255,        256,        4096,       4097,       65535,
                                             65536, 65537, 0x10000000, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff};
    Random& random_;
};

void lay_out_some(Random& random, const Graph& graph) {
    EXPECT(!describe(graph).empty(), "nothing is described");
    const Schedule made = schedule(graph);
    const int64_t group = 1 + random.below(20), conditions = 1 + random.below(12);
    const Layout layout = lay_out(graph, made, group, default_chunks(graph, made, group), conditions);
    for (size_t i = 0; i < graph.buffers.size(); ++i) {
        const bool of_conditions = made.spans[i] == Span::conditions;
        EXPECT(layout.offsets[i] <= (of_conditions ? layout.condition_bytes : layout.group_bytes), "outside");
    }
}

// A picture or two through the network. False where that would take too much.
bool run_some(Random& random, const File& file, const Graph& graph, bool valid) {
    double sum = 0.0;
    for (const Operation& operation : graph.operations) sum += arithmetic(graph, operation);
    const int64_t batch = 1 + random.below(2);
    if (static_cast<double>(batch) * sum > kMostArithmetic) return false;
    std::vector<Isa> isas = supported_isas();
    const NetworkDenoiser denoiser(file.data(), file.size(), nullptr, random.one_of(isas), 1, random.once_in(2));
    if (denoiser.workspace_bytes(batch) > kMostBytes) return false;

    const auto pictures = static_cast<size_t>(batch);
    const auto size = [&](const std::vector<int64_t>& shape) {
        size_t numbers = pictures;
        for (int64_t extent : shape) numbers *= static_cast<size_t>(extent);
        return numbers;
    };
    std::vector<float> x(size(denoiser.input_shape())), s(pictures), t(pictures);
    std::vector<float> out(size(denoiser.shape()), std::numeric_limits<float>::quiet_NaN());
    std::vector<int64_t> labels(pictures);
    for (float& value : x) value = random.around_zero(1.0f);
    for (size_t i = 0; i < pictures; ++i) {
        s[i] = t[i] = 0.25f + 0.5f * static_cast<float>(random.below(2));
        labels[i] = random.below(int64_t{graph.header.classes} + 1);
    }
    denoiser.bind({batch, x.data(), s.data(), t.data(), labels.data(), out.data(), nullptr})->run();
    if (valid)
        for (float value : out) EXPECT(std::isfinite(value), "a valid network predicts no number");
    return true;
}

struct Counts {
    int64_t files = 0, taken = 0, run = 0;
};

void spoil_one(Random& random, Counts& counts) {
    const NetworkFile network = any_network(random);
    const bool valid = random.once_in(20);
    const File file(valid ? network.content() : Spoiler(random).spoiled(network));
    ++counts.files;
    Graph graph;
    try {
        graph = parse(file.data(), file.size());
    } catch (const InvalidArtefact& error) {
        EXPECT(!valid, std::string("a valid network is refused: ") + error.what());
        return;
    }
    ++counts.taken;
    lay_out_some(random, graph);
    counts.run += run_some(random, file, graph, valid);
}

// Spoils files until the time is over; `seed` says which one is in work.
void spoil_for(double seconds, std::atomic<uint64_t>& seed) {
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + std::chrono::duration<double>(seconds);
    Counts counts;
    do {
        Random random(seed);
        spoil_one(random, counts);
        ++seed;
    } while (Clock::now() < end);
    std::printf("fuzz_graph: %lld files, %lld taken, %lld run\n", static_cast<long long>(counts.files),
                static_cast<long long>(counts.taken), static_cast<long long>(counts.run));
    EXPECT(seconds == 0 || (counts.run > 0 && counts.taken < counts.files), "too few files to mean anything");
}

}  // namespace

int main(int arguments, char** argument) {
    const double seconds = arguments > 1 ? std::strtod(argument[1], nullptr) : 10.0;
    // Whatever ends the child, its parent can tell the seed.
    void* shared =
        mmap(nullptr, sizeof(std::atomic<uint64_t>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(shared != MAP_FAILED, "no shared memory");
    auto& seed = *new (shared) std::atomic<uint64_t>(seed_of(arguments - 1, argument + 1));
    const pid_t child = fork();
    if (child == 0) {
        spoil_for(seconds, seed);
        return 0;
    }
    int status = 0;
    EXPECT(child > 0 && waitpid(child, &status, 0) == child, "no child");
    if (status == 0) return 0;
    std::fprintf(stderr, "again: fuzz_graph 0 %llu\n", static_cast<unsigned long long>(seed.load()));
    return 1;
}
