#include "kernels/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace ultraspeed::kernels {
namespace {

TEST(ThreadPool, RunsEveryTaskOnceWhateverTheirNumber) {
  for (const int num_threads : {1, 2, 3, 8}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    for (int round = 0; round < 1000; ++round) {
      const int num_tasks = round % 37;
      std::vector<std::atomic<int>> counts(static_cast<size_t>(num_tasks));
      pool.ParallelFor(num_tasks, [&](int i) { ++counts[static_cast<size_t>(i)]; });
      for (const std::atomic<int>& count : counts) ASSERT_EQ(count, 1) << num_tasks;
    }
  }
}

// What a job's tasks wrote is there for its caller and for the tasks of the next one. Plain memory:
// ThreadSanitizer watches.
TEST(ThreadPool, JobsFollowOneAnother) {
  constexpr int kTasks = 7;
  ThreadPool pool(3);
  int values[kTasks] = {}, sum = 0;
  for (int job = 0; job < 20'000; ++job) {
    const int previous = sum;
    pool.ParallelFor(kTasks, [&](int i) { values[i] = previous + i; });
    sum = 0;
    for (const int value : values) sum = (sum + value) % 1000;
    ASSERT_EQ(sum, (kTasks * previous + kTasks * (kTasks - 1) / 2) % 1000);
  }
}

// A task that ends last blocks nobody's share but its own task: threads take what others have left.
TEST(ThreadPool, AThreadThatIsHeldUpLeavesItsShareToTheOthers) {
  constexpr int kTasks = 64;
  for (const int held_up : {0, 31, 32, 63}) {
    ThreadPool pool(2);
    std::atomic<int> num_done{0};
    pool.ParallelFor(kTasks, [&](int i) {
      while (i == held_up && num_done < kTasks - 1) std::this_thread::yield();
      ++num_done;
    });
    EXPECT_EQ(num_done, kTasks);
  }
}

TEST(ThreadPool, WakesWhoSleeps) {
  ThreadPool pool(4);
  for (int job = 0; job < 20; ++job) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // longer than anybody spins
    std::atomic<int> num_running{0};
    pool.ParallelFor(4, [&](int) {  // none ends before all have begun, so all four threads do
      ++num_running;
      while (num_running < 4) std::this_thread::yield();
    });
    EXPECT_EQ(num_running, 4);
  }
}

TEST(ThreadPool, EndsWithoutEverHavingWorked) {
  for (int i = 0; i < 50; ++i) ThreadPool pool(3);
}

}  // namespace
}  // namespace ultraspeed::kernels
