// A thread that takes chunks of features, first come first served, while whoever brings them reads the next ones. Knows
// bytes. Does not know messages. The memory of a chunk stays where it is until its end has been asked for.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "chunks.h"

// A chunk that is to be copied.
struct Chunk {
  uint8_t* to;
  const uint8_t* from;
  int64_t size;
  int32_t value_bytes;
  uint32_t exponent;

  // Copies it; returns its CRC-32, and above that 1 where a value has all bits of the exponent set.
  int64_t move() const {
    const Taken taken = value_bytes == 2 ? take<uint16_t>(to, from, size, static_cast<uint16_t>(exponent))
                                         : take<uint32_t>(to, from, size, exponent);
    return static_cast<int64_t>(taken.crc) | static_cast<int64_t>(taken.special) << 32;
  }
};

// One on its way.
struct Job {
  Chunk chunk;
  bool done = false;
  int64_t found = 0;
};

class Mover {
 public:
  Mover() : thread_([this] { work(); }) {}

  ~Mover() {
    {
      std::lock_guard<std::mutex> guard(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  void begin(Job* job) {
    {
      std::lock_guard<std::mutex> guard(mutex_);
      waiting_.push_back(job);
    }
    wake_.notify_one();
  }

  // Returns what was found when the chunk is in its place. What the thread has not begun is done here: it may have
  // others' to do, or no core to do it on.
  int64_t end(Job* job) {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto place = std::find(waiting_.begin(), waiting_.end(), job);
    if (place == waiting_.end()) {
      done_.wait(lock, [&] { return job->done; });
      return job->found;
    }
    waiting_.erase(place);
    lock.unlock();
    return job->chunk.move();
  }

 private:
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return stopping_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      Job* const job = waiting_.front();
      waiting_.pop_front();
      lock.unlock();
      const int64_t found = job->chunk.move();
      lock.lock();
      job->found = found;
      job->done = true;
      done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::deque<Job*> waiting_;
  bool stopping_ = false;
  std::thread thread_;  // last, as it uses all of the above
};

// A chunk that a mover was given, which lives at least as long.
class Move {
 public:
  Move(std::shared_ptr<Mover> mover, const Chunk& chunk) : mover_(std::move(mover)), job_{chunk} { mover_->begin(&job_); }

  int64_t end() { return mover_->end(&job_); }

 private:
  const std::shared_ptr<Mover> mover_;
  Job job_;
};
