#include "threads.hpp"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace pyflow::network {

// They sleep between calls and wake by a condition variable: spinning would take a processor from whoever shares the
// machine, and a wake-up is short beside a group of pictures.
class Threads::Workers {
  public:
    explicit Workers(int64_t limit) : limit_(limit) {}

    ~Workers() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    // False in a child of the process that started them: threads do not survive a fork.
    bool alive() const { return started_in_ == getpid(); }

    void run(int64_t pieces, void (*work)(void*, int64_t), void* context) {
        const auto helpers = static_cast<size_t>(std::min(pieces - 1, limit_));
        while (threads_.size() < helpers) threads_.emplace_back([this] { serve(); });
        std::unique_lock<std::mutex> lock(mutex_);
        work_ = work;
        context_ = context;
        next_ = 0;
        pieces_ = pieces;
        for (size_t i = 0; i < helpers; ++i) wake_.notify_one();
        take(lock);
        done_.wait(lock, [this] { return running_ == 0; });
        const std::exception_ptr error = std::exchange(error_, nullptr);
        lock.unlock();
        if (error) std::rethrow_exception(error);
    }

  private:
    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [this] { return stop_ || next_ < pieces_; });
            if (stop_) return;
            take(lock);
        }
    }

    // Works on pieces until none is left to begin.
    void take(std::unique_lock<std::mutex>& lock) {
        while (next_ < pieces_) {
            const int64_t piece = next_++;
            ++running_;
            lock.unlock();
            std::exception_ptr error;
            try {
                work_(context_, piece);
            } catch (...) {
                error = std::current_exception();
            }
            lock.lock();
            --running_;
            if (error) {
                next_ = pieces_;
                if (!error_) error_ = error;
            }
        }
        if (running_ == 0) done_.notify_one();
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    void (*work_)(void*, int64_t) = nullptr;
    void* context_ = nullptr;
    int64_t next_ = 0, pieces_ = 0, running_ = 0;
    std::exception_ptr error_;
    bool stop_ = false;
    pid_t started_in_ = getpid();
    int64_t limit_;
    std::vector<std::thread> threads_;
};

Threads::Threads(int count)
    : count_(count > 0 ? count : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))) {}

Threads::~Threads() {
    // In a forked child there is nobody to join, and even to destroy their condition variable would wait for them.
    if (workers_ && !workers_->alive()) static_cast<void>(workers_.release());
}

void Threads::parallel(int64_t pieces, void (*work)(void*, int64_t), void* context) {
    if (pieces > 1 && count_ > 1 && !busy_.exchange(true, std::memory_order_acquire)) {
        struct Free {
            std::atomic<bool>& busy;
            ~Free() { busy.store(false, std::memory_order_release); }
        } const free{busy_};
        if (!workers_) workers_ = std::make_unique<Workers>(count_ - 1);
        if (workers_->alive()) return workers_->run(pieces, work, context);
    }
    for (int64_t piece = 0; piece < pieces; ++piece) work(context, piece);
}

}  // namespace pyflow::network
