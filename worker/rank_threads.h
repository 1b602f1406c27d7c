// A thread for each rank of a model that several share in one process: they do the same work at the
// same time and can wait for each other.
//
// Rank 0's thread is the caller's. Owners: the CPU executor's RankGroup and the CUDA executor's
// NodeGroup. Thread: Run on the engine thread; Meet inside Run, on the ranks' threads.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace ultraspeed::worker {

class RankThreads {
 public:
  // One rank starts no thread.
  explicit RankThreads(int num_ranks);
  ~RankThreads();
  RankThreads(const RankThreads&) = delete;
  RankThreads& operator=(const RankThreads&) = delete;

  int num_ranks() const { return num_ranks_; }

  // Calls work(rank) for all ranks at once, for rank 0 on the calling thread; returns when all are
  // done.
  void Run(const std::function<void(int rank)>& work);

  // Waits for all ranks. REQUIRES: called by every rank of one Run, equally often.
  void Meet();

 private:
  void ThreadLoop(int rank);

  const int num_ranks_;
  std::mutex mutex_;
  std::condition_variable started_, finished_, met_;
  const std::function<void(int)>* work_ = nullptr;  // guarded by mutex_, as is all that follows
  uint64_t num_runs_ = 0;
  int num_running_ = 0;
  bool stopping_ = false;
  int num_waiting_ = 0;
  uint64_t num_meetings_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace ultraspeed::worker
