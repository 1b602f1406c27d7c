#include "kernels/thread_pool.h"

#include <immintrin.h>

#include <chrono>

#include "kernels/check.h"
#include "kernels/cpu/kernel_table.h"

namespace ultraspeed::kernels {
namespace {

constexpr int kTaskBits = 20;
constexpr uint64_t kTaskMask = (uint64_t{1} << kTaskBits) - 1;
constexpr auto kSpin = std::chrono::microseconds(40);
constexpr int kPausesBeforeYield = 4000;  // a worker that holds a task may have lost its core

bool HasTask(uint64_t word) { return (word & kTaskMask) < (word >> kTaskBits & kTaskMask); }

}  // namespace

ThreadPool::ThreadPool(int num_threads) : shares_(static_cast<size_t>(num_threads)) {
  KERNELS_CHECK(num_threads, >=, 1);
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { WorkerLoop(i); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_seq_cst);
  wake_.fetch_add(1, std::memory_order_seq_cst);
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

// Takes the share's next task, if there is one. A successful exchange proves that its job is still
// running, hence that function_ and context_ are its own: the caller does not return before this
// task is counted in num_done_.
bool ThreadPool::RunOneTask(Share& share) {
  uint64_t word = share.word.load(std::memory_order_acquire);
  while (HasTask(word)) {
    if (!share.word.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel)) continue;
    function_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed),
                                              static_cast<int>(word & kTaskMask));
    return true;
  }
  return false;
}

// The thread's own share, then what is left of the others'. All tasks are of one job, which cannot
// end before they are counted. False if there was none.
bool ThreadPool::RunTasks(int thread) {
  const auto num_shares = shares_.size();
  int num_run = 0;
  for (size_t i = 0; i < num_shares; ++i) {
    while (RunOneTask(shares_[(static_cast<size_t>(thread) + i) % num_shares])) ++num_run;
  }
  if (num_run > 0) num_done_.fetch_add(num_run, std::memory_order_release);
  return num_run > 0;
}

void ThreadPool::Run(TaskFunction function, void* context, int num_tasks) {
  KERNELS_CHECK(num_tasks, <=, kTasksMax);
  function_.store(function, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  num_done_.store(0, std::memory_order_relaxed);
  ++epoch_;
  const auto threads = static_cast<uint64_t>(num_threads()),
             tasks = static_cast<uint64_t>(num_tasks);
  for (uint64_t i = 0; i < threads; ++i) {  // the caller has one of the largest
    const uint64_t next = (i * tasks + threads - 1) / threads;
    const uint64_t end = ((i + 1) * tasks + threads - 1) / threads;
    shares_[i].word.store(epoch_ << (2 * kTaskBits) | end << kTaskBits | next,
                          std::memory_order_seq_cst);
  }
  if (num_sleeping_.load(std::memory_order_seq_cst) > 0) {
    wake_.fetch_add(1, std::memory_order_seq_cst);
    wake_.notify_all();
  }
  RunTasks(0);
  for (int pauses = 0; num_done_.load(std::memory_order_acquire) < num_tasks; ++pauses) {
    _mm_pause();
    if (pauses >= kPausesBeforeYield) std::this_thread::yield();
  }
}

void ThreadPool::WorkerLoop(int thread) {
  const FlushDenormals flush;
  const std::atomic<uint64_t>& own = shares_[static_cast<size_t>(thread)].word;
  const auto has_task = [&own] { return HasTask(own.load(std::memory_order_seq_cst)); };
  while (!stopping_.load(std::memory_order_acquire)) {
    if (has_task() && RunTasks(thread)) continue;
    const auto give_up = std::chrono::steady_clock::now() + kSpin;
    bool found = false;
    while (!found && std::chrono::steady_clock::now() < give_up) {
      for (int i = 0; i < 16 && !found; ++i) {
        _mm_pause();
        found = has_task();
      }
    }
    if (found) continue;
    // Sleep. The caller publishes the shares before it reads num_sleeping_, and we announce
    // ourselves before we look at ours once more: one of the two sees the other.
    const uint32_t seen = wake_.load(std::memory_order_seq_cst);
    num_sleeping_.fetch_add(1, std::memory_order_seq_cst);
    if (!has_task() && !stopping_.load(std::memory_order_seq_cst)) {
      wake_.wait(seen, std::memory_order_seq_cst);
    }
    num_sleeping_.fetch_sub(1, std::memory_order_seq_cst);
  }
}

}  // namespace ultraspeed::kernels
