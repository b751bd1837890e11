// Threads that share out the parts of one piece of work at a time.
// Parts are taken one by one, so a thread that the system has put aside holds up at most the part that it is in; with
// shares fixed beforehand, as OpenMP has them, everybody waits for it. Who computes a part does not change its result.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

static inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> guard(mutex_);
      stopping_ = true;
      job_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls function(part) for every part from 0 on; returns when all are done.
  template <typename Function>
  void run(int64_t parts, const Function& function) {
    if (workers_.empty() || parts <= 1) {
      for (int64_t part = 0; part < parts; ++part) function(part);
      return;
    }
    call_ = [](const void* f, int64_t part) { (*static_cast<const Function*>(f))(part); };
    function_ = &function;
    parts_ = parts;
    next_.store(0, std::memory_order_relaxed);
    open_.store(true, std::memory_order_seq_cst);
    job_.fetch_add(1);
    if (sleeping_.load() > 0) {
      { std::lock_guard<std::mutex> guard(mutex_); }
      wake_.notify_all();
    }
    take();
    open_.store(false, std::memory_order_seq_cst);
    while (active_.load(std::memory_order_seq_cst) > 0) relax();
  }

 private:
  void take() {
    for (int64_t part; (part = next_.fetch_add(1, std::memory_order_relaxed)) < parts_;) call_(function_, part);
  }

  // A worker enters before it looks whether the work is open, and the caller closes it before it looks whether anybody
  // is inside: one of the two sees the other.
  void join_in() {
    active_.fetch_add(1, std::memory_order_seq_cst);
    if (open_.load(std::memory_order_seq_cst)) take();
    active_.fetch_sub(1, std::memory_order_seq_cst);
  }

  void work() {
    uint64_t seen = 0;
    while (true) {
      for (int spins = 0; job_.load() == seen && spins < kSpins; ++spins) relax();
      if (job_.load() == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, [&] { return job_.load() != seen; });
        sleeping_.fetch_sub(1);
      }
      seen = job_.load();
      if (stopping_) return;
      join_in();
    }
  }

  static constexpr int kSpins = 2000;  // some 50 microseconds, longer than the gaps within a step

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> job_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<int> active_{0};
  std::atomic<bool> open_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<int64_t> next_{0};
  int64_t parts_ = 0;
  void (*call_)(const void*, int64_t) = nullptr;
  const void* function_ = nullptr;
};
