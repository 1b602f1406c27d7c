#include "worker/rank_threads.h"

#include "kernels/check.h"

namespace ultraspeed::worker {

RankThreads::RankThreads(int num_ranks) : num_ranks_(num_ranks) {
  KERNELS_CHECK(num_ranks, >=, 1);
  for (int rank = 1; rank < num_ranks; ++rank)
    threads_.emplace_back([this, rank] { ThreadLoop(rank); });
}

RankThreads::~RankThreads() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  started_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void RankThreads::Run(const std::function<void(int)>& work) {
  if (num_ranks_ == 1) return work(0);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    KERNELS_CHECK(num_running_, ==, 0);
    work_ = &work;
    num_running_ = num_ranks_ - 1;
    ++num_runs_;
  }
  started_.notify_all();
  work(0);
  std::unique_lock<std::mutex> lock(mutex_);
  finished_.wait(lock, [this] { return num_running_ == 0; });
}

void RankThreads::ThreadLoop(int rank) {
  uint64_t num_done = 0;
  for (;;) {
    const std::function<void(int)>* work = nullptr;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      started_.wait(lock, [&] { return stopping_ || num_runs_ > num_done; });
      if (stopping_) return;
      work = work_;
    }
    (*work)(rank);
    ++num_done;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--num_running_ == 0) finished_.notify_one();
  }
}

void RankThreads::Meet() {
  if (num_ranks_ == 1) return;
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t meeting = num_meetings_;
  if (++num_waiting_ == num_ranks_) {
    num_waiting_ = 0;
    ++num_meetings_;
    lock.unlock();
    met_.notify_all();
    return;
  }
  met_.wait(lock, [&] { return num_meetings_ > meeting; });
}

}  // namespace ultraspeed::worker
