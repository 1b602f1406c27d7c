// Persistent threads that split one operation at a time into tasks (fork and join).
//
// Owner: the executor; one thread calls ParallelFor at a time and takes part in the work itself.
// Workers spin some tens of microseconds for the next job, then sleep on a futex, because the
// router and clients share the machine.
//
// Each thread has a share of a job, neighbouring tasks, and takes from those of the others when its
// own is empty: a thread works without waiting for the others' cache lines, and tasks of the same
// number, which often read what those of the operation before wrote, tend to run on the same core.
// A share is one 64-bit word (epoch, end, next task), so a thread that is late can never take a
// task of another job, and the caller waits only for tasks that somebody has really begun.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace ultraspeed::kernels {

class ThreadPool {
 public:
  static constexpr int kTasksMax = (1 << 20) - 1;

  // num_threads counts the caller: 1 starts no thread and runs everything inline. REQUIRES:
  // num_threads >= 1.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(i) once for each i in [0, num_tasks), in any order, on any thread; returns when all
  // are done. REQUIRES: 0 <= num_tasks <= kTasksMax; not called from inside a task.
  template <typename Task>
  void ParallelFor(int num_tasks, Task&& task) {
    using Function = std::remove_reference_t<Task>;
    if (num_tasks <= 1 || workers_.empty()) {
      for (int i = 0; i < num_tasks; ++i) task(i);
      return;
    }
    Run([](void* context, int i) { (*static_cast<Function*>(context))(i); },
        const_cast<void*>(static_cast<const void*>(&task)), num_tasks);
  }

 private:
  using TaskFunction = void (*)(void* context, int task);
  struct alignas(64) Share {
    std::atomic<uint64_t> word{0};  // epoch << 40 | end << 20 | next task
  };

  void Run(TaskFunction function, void* context, int num_tasks);
  bool RunOneTask(Share& share);
  bool RunTasks(int thread);
  void WorkerLoop(int thread);

  std::vector<Share> shares_;  // the caller's, then those of the workers
  uint64_t epoch_ = 0;
  std::atomic<TaskFunction> function_{nullptr};
  std::atomic<void*> context_{nullptr};
  alignas(64) std::atomic<int> num_done_{0};
  alignas(64) std::atomic<uint32_t> wake_{0};
  std::atomic<int> num_sleeping_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace ultraspeed::kernels
