#include "worker/cpu/rank_group.h"

#include <algorithm>

#include "kernels/check.h"

namespace ultraspeed::worker {

RankGroup::RankGroup(int num_ranks, size_t sum_count_max) : num_ranks_(num_ranks) {
  KERNELS_CHECK(num_ranks, >=, 1);
  if (num_ranks == 1) return;
  parts_.resize(static_cast<size_t>(num_ranks));
  num_sums_.resize(static_cast<size_t>(num_ranks));
  for (std::vector<float>& sums : sums_) sums.resize(sum_count_max);
  for (int rank = 1; rank < num_ranks; ++rank)
    threads_.emplace_back([this, rank] { ThreadLoop(rank); });
}

RankGroup::~RankGroup() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  started_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void RankGroup::Run(const std::function<void(int)>& work) {
  if (num_ranks_ > 1) {
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

void RankGroup::ThreadLoop(int rank) {
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

void RankGroup::Meet() {
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

void RankGroup::Sum(int rank, float* data, size_t count) {
  if (num_ranks_ == 1) return;
  const auto r = static_cast<size_t>(rank), n = static_cast<size_t>(num_ranks_);
  std::vector<float>& sums = sums_[num_sums_[r]++ % 2];
  KERNELS_CHECK(count, <=, sums.size());
  parts_[r] = data;
  Meet();
  // Each rank adds its share of the elements.
  const size_t begin = count * r / n, end = count * (r + 1) / n;
  std::copy(parts_[0] + begin, parts_[0] + end, sums.begin() + static_cast<ptrdiff_t>(begin));
  for (size_t other = 1; other < n; ++other) {
    const float* const part = parts_[other];
    for (size_t i = begin; i < end; ++i) sums[i] += part[i];
  }
  Meet();
  std::copy_n(sums.begin(), count, data);
}

}  // namespace ultraspeed::worker
