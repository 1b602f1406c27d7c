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

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  KERNELS_CHECK(num_threads, >=, 1);
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this] { WorkerLoop(); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_seq_cst);
  wake_.fetch_add(1, std::memory_order_seq_cst);
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

// Takes the next task of the current job, if there is one. A successful exchange proves that the
// job is still running, hence that function_ and context_ are its own: the caller does not return
// before this task is counted in num_done_.
bool ThreadPool::RunOneTask() {
  uint64_t job = job_.load(std::memory_order_acquire);
  for (;;) {
    const uint64_t next = job & kTaskMask;
    if (next >= ((job >> kTaskBits) & kTaskMask)) return false;
    if (job_.compare_exchange_weak(job, job + 1, std::memory_order_acq_rel)) {
      function_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed),
                                                static_cast<int>(next));
      num_done_.fetch_add(1, std::memory_order_release);
      return true;
    }
  }
}

void ThreadPool::Run(TaskFunction function, void* context, int num_tasks) {
  KERNELS_CHECK(num_tasks, <=, kTasksMax);
  function_.store(function, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  num_done_.store(0, std::memory_order_relaxed);
  const uint64_t epoch = (job_.load(std::memory_order_relaxed) >> (2 * kTaskBits)) + 1;
  job_.store(epoch << (2 * kTaskBits) | static_cast<uint64_t>(num_tasks) << kTaskBits,
             std::memory_order_seq_cst);
  if (num_sleeping_.load(std::memory_order_seq_cst) > 0) {
    wake_.fetch_add(1, std::memory_order_seq_cst);
    wake_.notify_all();
  }
  while (RunOneTask()) {
  }
  for (int pauses = 0; num_done_.load(std::memory_order_acquire) < num_tasks; ++pauses) {
    _mm_pause();
    if (pauses >= kPausesBeforeYield) std::this_thread::yield();
  }
}

void ThreadPool::WorkerLoop() {
  const FlushDenormals flush;
  while (!stopping_.load(std::memory_order_acquire)) {
    if (RunOneTask()) continue;
    const auto give_up = std::chrono::steady_clock::now() + kSpin;
    bool worked = false;
    while (!worked && std::chrono::steady_clock::now() < give_up) {
      for (int i = 0; i < 16 && !worked; ++i) {
        _mm_pause();
        worked = RunOneTask();
      }
    }
    if (worked) continue;
    // Sleep. The caller publishes the job before it reads num_sleeping_, and we announce ourselves
    // before we look at the job once more: one of the two sees the other.
    const uint32_t seen = wake_.load(std::memory_order_seq_cst);
    num_sleeping_.fetch_add(1, std::memory_order_seq_cst);
    if (!RunOneTask() && !stopping_.load(std::memory_order_seq_cst)) {
      wake_.wait(seen, std::memory_order_seq_cst);
    }
    num_sleeping_.fetch_sub(1, std::memory_order_seq_cst);
  }
}

}  // namespace ultraspeed::kernels
