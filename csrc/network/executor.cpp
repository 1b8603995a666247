#include "executor.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <map>

#include "../errors.hpp"
#include "call.hpp"
#include "operations.hpp"

namespace pyflow::network {

namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of a thread, for that much work; no more than a network without any arithmetic has memory for.
int64_t least_pictures(const Graph& graph, const Schedule& schedule, double least_work) {
    constexpr double most = 256;
    double work = 1.0;
    for (const Stage& stage : schedule.stages)
        for (uint32_t index : stage.operations) work += arithmetic(graph, graph.operations[index]);
    return static_cast<int64_t>(std::clamp(std::ceil(least_work / work), 1.0, most));
}

// Calls in their order, over memory of their own.
class Workspace {
  public:
    Workspace(const NetworkDenoiser& denoiser, int64_t bytes)
        : kernels_(denoiser.kernels()), arenas_(denoiser.arenas()), arena_(arenas_.take(bytes)) {
        calls_.reserve(denoiser.graph().operations.size());
        if (denoiser.profiles()) spent_.resize(denoiser.graph().operations.size());
    }

    ~Workspace() {
        if (arena_.get()) arenas_.give(std::move(arena_));
    }
    Workspace(Workspace&&) = default;

    uint8_t* arena() const { return arena_.get(); }

    void add(const NetworkDenoiser& denoiser, const Layout& layout, const std::vector<uint32_t>& operations,
             int64_t chunk, const Memory& memory) {
        for (uint32_t operation : operations)
            calls_.emplace_back(denoiser.graph(), denoiser.schedule(), layout, operation, memory);
        stages_.push_back({calls_.size(), chunk});
    }

    void run(int64_t group, int64_t pictures) {
        size_t begin = 0;
        for (const Part& stage : stages_) {
            for (int64_t first = 0; first < pictures; first += stage.chunk)
                run(begin, stage.end, {group, first, std::min(stage.chunk, pictures - first)});
            begin = stage.end;
        }
    }

    void take_spent(const NetworkDenoiser& denoiser) {
        denoiser.add_to_profile(spent_);
        std::fill(spent_.begin(), spent_.end(), Spent{});
    }

  private:
    struct Part {
        size_t end;  // of its calls
        int64_t chunk;
    };

    void run(size_t begin, size_t end, const Pictures& pictures) {
        if (spent_.empty()) {
            for (size_t i = begin; i < end; ++i) calls_[i].run(kernels_, pictures);
            return;
        }
        auto before = std::chrono::steady_clock::now();
        for (size_t i = begin; i < end; ++i) {
            calls_[i].run(kernels_, pictures);
            const auto after = std::chrono::steady_clock::now();
            Spent& spent = spent_[calls_[i].operation()];
            spent.seconds += std::chrono::duration<double>(after - before).count();
            ++spent.calls;
            before = after;
        }
    }

    const Kernels& kernels_;
    Arenas& arenas_;
    Arena arena_;  // of nothing, once it has moved
    std::vector<Call> calls_;
    std::vector<Part> stages_;
    std::vector<Spent> spent_;  // by operation; empty when nobody asks
};

class NetworkBound final : public Bound {
  public:
    // `labels` are the distinct ones, `rows` says which of them each picture has.
    NetworkBound(const NetworkDenoiser& denoiser, const Cut& cut, const Buffers& buffers, std::vector<int64_t> labels,
                 std::vector<int32_t> rows)
        : denoiser_(denoiser),
          buffers_(buffers),
          labels_(std::move(labels)),
          rows_of_labels_(std::move(rows)),
          groups_(cut.groups),
          s_(labels_.size()),
          t_(labels_.size()),
          conditions_(labels_),
          rows_(rows_of_labels_),
          condition_workspace_(denoiser, cut.condition_bytes) {
        Memory memory{condition_workspace_.arena(),
                      nullptr,
                      nullptr,
                      rows_.data(),
                      const_cast<float*>(buffers.x),
                      buffers.out,
                      s_.data(),
                      t_.data(),
                      conditions_.data()};
        memory.scratch = memory.conditions + cut.layout.condition_bytes;
        condition_workspace_.add(denoiser, cut.layout, denoiser.schedule().conditions, buffers.batch, memory);
        workspaces_.reserve(cut.workspaces);
        for (int64_t i = 0; i < cut.workspaces; ++i) {
            Workspace& workspace = workspaces_.emplace_back(denoiser, cut.group_bytes);
            memory.group = workspace.arena();
            memory.scratch = memory.group + cut.layout.group_bytes;
            const std::vector<Stage>& stages = denoiser.schedule().stages;
            for (size_t s = 0; s < stages.size(); ++s)
                workspace.add(denoiser, cut.layout, stages[s].operations, cut.chunks[s], memory);
        }
    }

    void run() override {
        if (times_are_equal())
            run_at_one_time();
        else
            run_one_by_one();
        if (!denoiser_.profiles()) return;
        condition_workspace_.take_spent(denoiser_);
        for (Workspace& workspace : workspaces_) workspace.take_spent(denoiser_);
    }

  private:
    bool times_are_equal() const {
        const auto equal = [&](const float* times) {
            return std::all_of(times, times + buffers_.batch, [&](float time) { return time == *times; });
        };
        return equal(buffers_.s) && (denoiser_.graph().header.times < 2 || equal(buffers_.t));
    }

    void run_at_one_time() {
        std::fill(s_.begin(), s_.end(), *buffers_.s);
        std::fill(t_.begin(), t_.end(), *buffers_.t);
        conditions_ = labels_;
        rows_ = rows_of_labels_;
        condition_workspace_.run(0, static_cast<int64_t>(conditions_.size()));
        next_group_ = 0;
        denoiser_.threads().parallel(
            static_cast<int64_t>(workspaces_.size()),
            [](void* self, int64_t i) {
                auto& bound = *static_cast<NetworkBound*>(self);
                bound.run_groups(bound.workspaces_[i]);
            },
            this);
    }

    void run_groups(Workspace& workspace) {
        for (int64_t group; (group = next_group_++) < groups_;) {
            const int64_t first = begin_of(group);
            workspace.run(first, begin_of(group + 1) - first);
        }
    }

    int64_t begin_of(int64_t group) const { return group * buffers_.batch / groups_; }

    // The sampler tells all pictures one time. Where a caller does not, a condition is computed for each, which needs
    // no memory that the other case has not.
    void run_one_by_one() {
        std::fill(rows_.begin(), rows_.end(), 0);
        for (int64_t i = 0; i < buffers_.batch; ++i) {
            s_[0] = buffers_.s[i];
            t_[0] = buffers_.t[i];
            conditions_[0] = labels_[rows_of_labels_[i]];
            condition_workspace_.run(0, 1);
            workspaces_[0].run(i, 1);
        }
    }

    const NetworkDenoiser& denoiser_;
    const Buffers buffers_;
    const std::vector<int64_t> labels_;
    const std::vector<int32_t> rows_of_labels_;
    const int64_t groups_;
    // Of this run's conditions, and which of them each picture has.
    std::vector<float> s_, t_;
    std::vector<int64_t> conditions_;
    std::vector<int32_t> rows_;
    Workspace condition_workspace_;
    std::vector<Workspace> workspaces_;
    std::atomic<int64_t> next_group_{0};
};

}  // namespace

NetworkDenoiser::NetworkDenoiser(const void* bytes, size_t size, std::shared_ptr<const void> owner, Isa isa,
                                 int threads, bool profile, double least_work)
    : owner_(std::move(owner)),
      graph_(parse(bytes, size)),
      schedule_(network::schedule(graph_)),
      kernels_(network::kernels(isa)),
      profile_(profile),
      least_pictures_(least_pictures(graph_, schedule_, least_work)),
      threads_(threads),
      arenas_(threads_.count() + 1),
      spent_(profile ? graph_.operations.size() : 0) {
    const Header& header = graph_.header;
    shape_ = {header.channels};
    if (!header.points) shape_.insert(shape_.end(), {header.height, header.width});
    extra_ = graph_.extra;
    inputs_ = {"x", "s"};
    if (header.times == 2) inputs_.push_back("t");
    if (header.classes > 0) inputs_.push_back("label");
}

Cut NetworkDenoiser::cut(int64_t batch, int64_t conditions) const {
    if (batch < 1) throw InvalidInput("batch is " + std::to_string(batch) + "; expected 1 or more");
    Cut made{};
    made.batch = batch;
    made.conditions = conditions;
    // As many groups for each thread, and none larger than another by more than a picture.
    made.workspaces = std::clamp<int64_t>(batch / least_pictures_, 1, threads_.count());
    const int64_t most = std::max(default_group(graph_, schedule_), least_pictures_);
    made.groups = divide_up(batch, made.workspaces * most) * made.workspaces;
    made.largest = divide_up(batch, made.groups);
    made.chunks = default_chunks(graph_, schedule_, made.largest);
    made.layout = lay_out(graph_, schedule_, made.largest, made.chunks, conditions);

    const auto scratch = [&](uint32_t index, int64_t pictures) -> int64_t {
        const Operation& operation = graph_.operations[index];
        switch (operation.kind) {
            case Kind::convolve:
                return convolve_scratch(graph_, operation, pictures);
            case Kind::prepare:
                return prepare_scratch(graph_, operation);
            case Kind::attend:
                return attend_scratch(graph_, operation);
            default:
                return 0;
        }
    };
    int64_t condition_scratch = 0, group_scratch = 0;
    for (uint32_t index : schedule_.conditions)
        condition_scratch = std::max(condition_scratch, scratch(index, conditions));
    for (size_t s = 0; s < schedule_.stages.size(); ++s)
        for (uint32_t index : schedule_.stages[s].operations)
            group_scratch = std::max(group_scratch, scratch(index, made.chunks[s]));
    made.condition_bytes = static_cast<int64_t>(made.layout.condition_bytes) + condition_scratch;
    made.group_bytes = static_cast<int64_t>(made.layout.group_bytes) + group_scratch;
    return made;
}

std::shared_ptr<const Cut> NetworkDenoiser::latest_cut(int64_t batch, int64_t conditions) const {
    const std::lock_guard<std::mutex> lock(cut_mutex_);
    if (!latest_cut_ || latest_cut_->batch != batch || latest_cut_->conditions != conditions)
        latest_cut_ = std::make_shared<const Cut>(cut(batch, conditions));
    return latest_cut_;
}

std::unique_ptr<Bound> NetworkDenoiser::bind(const Buffers& buffers) const {
    const int64_t classes = graph_.header.classes;
    std::vector<int64_t> labels;
    std::vector<int32_t> rows(buffers.batch);
    if (classes == 0) {
        labels = {0};
    } else {
        std::map<int64_t, int32_t> known;
        for (int64_t i = 0; i < buffers.batch; ++i) {
            const int64_t label = buffers.label[i];
            if (label < 0 || label > classes)
                throw InvalidInput("a label is " + std::to_string(label) + "; expected 0 to " +
                                   std::to_string(classes) + ", the last of them no label");
            const auto [found, is_new] = known.emplace(label, static_cast<int32_t>(labels.size()));
            if (is_new) labels.push_back(label);
            rows[i] = found->second;
        }
    }
    const auto conditions = static_cast<int64_t>(labels.size());
    return std::make_unique<NetworkBound>(*this, *latest_cut(buffers.batch, conditions), buffers, std::move(labels),
                                          std::move(rows));
}

int64_t NetworkDenoiser::workspace_bytes(int64_t batch) const {
    const Cut made = cut(batch, std::clamp<int64_t>(batch, 1, int64_t{graph_.header.classes} + 1));
    return made.condition_bytes + made.workspaces * made.group_bytes;
}

void NetworkDenoiser::add_to_profile(const std::vector<Spent>& spent) const {
    const std::lock_guard<std::mutex> lock(spent_mutex_);
    for (size_t i = 0; i < spent.size(); ++i) {
        spent_[i].seconds += spent[i].seconds;
        spent_[i].calls += spent[i].calls;
    }
}

std::vector<NetworkDenoiser::Row> NetworkDenoiser::take_profile() const {
    const std::lock_guard<std::mutex> lock(spent_mutex_);
    std::vector<Row> rows;
    for (size_t i = 0; i < spent_.size(); ++i) {
        const Operation& operation = graph_.operations[i];
        rows.push_back({operation.name, name_of(operation.kind),
                        operation.kind == Kind::convolve ? name_of(operation.algorithm) : "", spent_[i].seconds,
                        spent_[i].calls});
    }
    std::fill(spent_.begin(), spent_.end(), Spent{});
    return rows;
}

}  // namespace pyflow::network
