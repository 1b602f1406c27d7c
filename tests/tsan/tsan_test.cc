// That ThreadSanitizer sees what Abseil orders, and reports what nobody orders: an edge too many
// would hide races. Only in the preset cpu-tsan.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace ultraspeed {
namespace {

constexpr int kRounds = 2000;

struct Mailbox {
  absl::Mutex mutex;
  absl::CondVar filled;
  std::vector<int> letters ABSL_GUARDED_BY(mutex);
  bool closed ABSL_GUARDED_BY(mutex) = false;
  int num_taken ABSL_GUARDED_BY(mutex) = 0;

  static bool HasNews(Mailbox* self) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return self->closed || !self->letters.empty();
  }
  // False: closed and empty.
  bool Take() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    if (letters.empty()) return false;
    letters.pop_back();
    ++num_taken;
    return true;
  }
};

// Runs a test of this program that is disabled, for it contains a race, as a process of its own.
// 66: there was a report.
int RunDisabled(const std::string& name) {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  const int status =
      std::system(absl::StrCat("env -u GTEST_OUTPUT TSAN_OPTIONS=exitcode=66 ", self,
                               " --gtest_also_run_disabled_tests --gtest_filter=Race.DISABLED_",
                               name, " >/dev/null 2>&1")
                      .c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void Both(const std::function<void()>& one, const std::function<void()>& other) {
  std::thread thread(one);
  other();
  thread.join();
}

TEST(Tsan, SeesWhatMutexesOrder) {
  Mailbox box;
  std::vector<std::thread> takers;
  takers.emplace_back([&] {
    absl::MutexLock lock(&box.mutex);
    do {
      box.mutex.Await(absl::Condition(&Mailbox::HasNews, &box));
    } while (box.Take());
  });
  takers.emplace_back([&] {
    absl::MutexLock lock(&box.mutex);
    do {
      while (!box.mutex.AwaitWithTimeout(absl::Condition(&Mailbox::HasNews, &box),
                                         absl::Milliseconds(1))) {
      }
    } while (box.Take());
  });
  takers.emplace_back([&] {
    absl::MutexLock lock(&box.mutex);
    do {
      while (!Mailbox::HasNews(&box)) box.filled.WaitWithTimeout(&box.mutex, absl::Milliseconds(1));
    } while (box.Take());
  });
  takers.emplace_back([&] {
    for (bool more = true; more;) {
      box.mutex.LockWhen(absl::Condition(&Mailbox::HasNews, &box));
      more = box.Take();
      box.mutex.Unlock();
    }
  });
  for (int i = 0; i < kRounds; ++i) {
    absl::MutexLock lock(&box.mutex);
    box.letters.push_back(i);
    box.filled.Signal();
  }
  {
    absl::MutexLock lock(&box.mutex);
    box.closed = true;
    box.filled.SignalAll();
  }
  for (std::thread& taker : takers) taker.join();
  absl::MutexLock lock(&box.mutex);
  EXPECT_EQ(box.num_taken, kRounds);
}

TEST(Tsan, SeesWhatReadersAndWritersOrder) {
  absl::Mutex mutex;
  std::vector<int> table;
  const auto work = [&] {
    for (int i = 0; i < kRounds; ++i) {
      if (i % 50 == 0) {
        absl::WriterMutexLock lock(&mutex);
        table.push_back(i);
      } else {
        absl::ReaderMutexLock lock(&mutex);
        EXPECT_LE(table.size(), 2 * kRounds);
      }
    }
  };
  Both(work, work);
}

TEST(Tsan, SeesWhatNotificationsOrder) {
  for (int i = 0; i < 100; ++i) {
    int value = 0;
    absl::Notification made;
    std::thread asks([&] {
      while (!made.HasBeenNotified()) std::this_thread::yield();
      EXPECT_EQ(value, 1);
    });
    std::thread waits([&] {
      made.WaitForNotification();
      EXPECT_EQ(value, 1);
    });
    value = 1;
    made.Notify();
    asks.join();
    waits.join();
  }
}

TEST(Tsan, SeesWhoReadAStatusBeforeItsEnd) {
  for (int i = 0; i < 100; ++i) {
    absl::Status status = absl::InternalError("a message on the heap");
    std::thread thread([copy = status] { EXPECT_FALSE(copy.message().empty()); });
    status = absl::OkStatus();
    thread.join();
  }
}

TEST(Race, DISABLED_UnderNoLock) {
  int value = 0;
  const auto work = [&] { ++value; };
  Both(work, work);
}

TEST(Race, DISABLED_UnderTwoLocks) {
  int value = 0;
  absl::Mutex one, other;
  Both(
      [&] {
        absl::MutexLock lock(&one);
        ++value;
      },
      [&] {
        absl::MutexLock lock(&other);
        ++value;
      });
}

TEST(Race, DISABLED_OfReaders) {
  int value = 0;
  absl::Mutex mutex;
  const auto work = [&] {
    absl::ReaderMutexLock lock(&mutex);
    ++value;
  };
  Both(work, work);
}

// The one waits for what the other sets without the lock.
TEST(Race, DISABLED_OfACondition) {
  absl::Mutex mutex;
  bool flag = false;
  const auto set = [&] { return flag; };
  Both(
      [&] {
        absl::MutexLock lock(&mutex);
        mutex.AwaitWithTimeout(absl::Condition(&set), absl::Milliseconds(200));
      },
      [&] {
        absl::SleepFor(absl::Milliseconds(50));
        flag = true;
        absl::MutexLock lock(&mutex);
      });
}

TEST(Tsan, ReportsRaces) {
  for (const std::string name : {"UnderNoLock", "UnderTwoLocks", "OfReaders", "OfACondition"})
    EXPECT_EQ(RunDisabled(name), 66) << name;
}

}  // namespace
}  // namespace ultraspeed
