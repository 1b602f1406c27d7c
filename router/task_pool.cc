#include "router/task_pool.h"

#include <utility>

namespace ultraspeed::router {

TaskPool::TaskPool(int num_threads, size_t queue_capacity) : queue_capacity_(queue_capacity) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { RunThread(); });
}

TaskPool::~TaskPool() {
  {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

bool TaskPool::TrySubmit(std::function<void()> task) {
  absl::MutexLock lock(&mutex_);
  if (closing_ || queue_.size() >= queue_capacity_) return false;
  queue_.push_back(std::move(task));
  return true;
}

void TaskPool::RunThread() {
  for (;;) {
    std::function<void()> task;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(
          +[](TaskPool* self)
               ABSL_NO_THREAD_SAFETY_ANALYSIS { return self->closing_ || !self->queue_.empty(); },
          this));
      if (queue_.empty()) return;
      task = std::move(queue_.front());
      queue_.pop_front();
    }
    task();
  }
}

}  // namespace ultraspeed::router
