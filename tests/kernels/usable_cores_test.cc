// The count of cores against what the kernel says and against a mask of the test's own.
#include "kernels/usable_cores.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <thread>

namespace ultraspeed::kernels {
namespace {

TEST(UsableCoresTest, IsBoundedByTheThreadsAffinity) {
  const int before = NumUsableCores();
  EXPECT_GE(before, 1);
  int within_one = 0;
  std::thread([&] {  // a mask of its own, which ends with it
    cpu_set_t allowed, first;
    ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
    CPU_ZERO(&first);
    for (int core = 0; core < CPU_SETSIZE && CPU_COUNT(&first) == 0; ++core) {
      if (CPU_ISSET(core, &allowed)) CPU_SET(core, &first);
    }
    EXPECT_LE(before, CPU_COUNT(&allowed));
    ASSERT_EQ(sched_setaffinity(0, sizeof(first), &first), 0);
    within_one = NumUsableCores();
  })
      .join();
  EXPECT_EQ(within_one, 1);
  EXPECT_EQ(NumUsableCores(), before);
}

TEST(UsableCoresTest, AQuotaCountsAsCoresRoundedUp) {
  EXPECT_EQ(CoresOfQuota("200000 100000"), 2);
  EXPECT_EQ(CoresOfQuota("250000 100000\n"), 3);
  EXPECT_EQ(CoresOfQuota("5000 100000"), 1);
  EXPECT_EQ(CoresOfQuota("1e300 1"), 1 << 20);
  for (const char* none : {"max 100000", "", "max", "0 100000", "100000", "-1 100000", "100000 0",
                           "nan 100000", "two 100000"}) {
    EXPECT_EQ(CoresOfQuota(none), 0) << none;
  }
}

}  // namespace
}  // namespace ultraspeed::kernels
