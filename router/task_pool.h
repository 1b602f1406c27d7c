// A few threads for work that is too long for a gRPC reactor (tokenizing a long prompt). Used by
// InferenceService. Thread contract: every method may be called from any thread. Destruction runs
// what was accepted, then joins.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace ultraspeed::router {

class TaskPool {
 public:
  // REQUIRES: num_threads >= 1, queue_capacity >= 1.
  TaskPool(int num_threads, size_t queue_capacity);
  ~TaskPool();
  TaskPool(const TaskPool&) = delete;
  TaskPool& operator=(const TaskPool&) = delete;

  // False if queue_capacity tasks wait already; the task is then dropped unrun.
  [[nodiscard]] bool TrySubmit(std::function<void()> task);

 private:
  void RunThread();

  const size_t queue_capacity_;
  absl::Mutex mutex_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace ultraspeed::router
