#include "worker/kv_cache.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace ultraspeed::worker {
namespace {

TEST(KvCacheTest, RoundsUpToPages) {
  KvCache kv(2, 10, 8);
  EXPECT_EQ(kv.tokens_max(), 80);
  const KvLease one = kv.Acquire(1);
  EXPECT_EQ(one.pages.size(), 1u);
  const KvLease nine = kv.Acquire(9);
  EXPECT_EQ(nine.pages.size(), 2u);
  EXPECT_NE(one.slot, nine.slot);
  EXPECT_EQ(kv.tokens_used(), 24);
  kv.CheckIntegrity();
}

TEST(KvCacheTest, RefusesWithoutSlotOrPages) {
  KvCache kv(2, 4, 8);
  EXPECT_TRUE(kv.CanAcquire(32));
  EXPECT_FALSE(kv.CanAcquire(33));
  KvLease first = kv.Acquire(8);
  EXPECT_FALSE(kv.CanAcquire(25));
  KvLease second = kv.Acquire(8);
  EXPECT_FALSE(kv.CanAcquire(1)) << "no slot left";
  kv.Release(first);
  EXPECT_TRUE(kv.CanAcquire(24));
  kv.Release(second);
  EXPECT_EQ(kv.tokens_used(), 0);
  EXPECT_EQ(kv.slots_free(), 2);
}

TEST(KvCacheDeathTest, DoubleReleaseAborts) {
  KvCache kv(1, 1, 8);
  KvLease lease = kv.Acquire(8);
  KvLease copy = lease;
  kv.Release(lease);
  EXPECT_DEATH(kv.Release(copy), "KERNELS_CHECK");
}

TEST(KvCacheTest, RandomUseLeaksNothing) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  KvCache kv(5, 23, 4);
  std::vector<KvLease> leases;
  for (int i = 0; i < 5000; ++i) {
    const int64_t num_tokens = 1 + static_cast<int64_t>(random() % 40);
    if (random() % 2 == 0 && kv.CanAcquire(num_tokens)) {
      leases.push_back(kv.Acquire(num_tokens));
    } else if (!leases.empty()) {
      const size_t victim = random() % leases.size();
      kv.Release(leases[victim]);
      leases.erase(leases.begin() + static_cast<std::ptrdiff_t>(victim));
    }
    kv.CheckIntegrity();
    std::set<int32_t> pages;
    for (const KvLease& lease : leases) {
      for (const int32_t page : lease.pages)
        ASSERT_TRUE(pages.insert(page).second) << "page " << page << " held twice";
    }
    ASSERT_EQ(kv.tokens_used(), static_cast<int64_t>(pages.size()) * 4);
  }
  for (KvLease& lease : leases) kv.Release(lease);
  EXPECT_EQ(kv.tokens_used(), 0);
  EXPECT_EQ(kv.slots_free(), 5);
}

}  // namespace
}  // namespace ultraspeed::worker
