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

TEST(KvCacheTest, ACachedPageOutlivesItsLeaseAndIsShared) {
  KvCache kv(3, 4, 8);
  KvLease first = kv.Acquire(24);
  kv.Cache(first.pages[0]);
  kv.Cache(first.pages[1]);
  const std::vector<int32_t> cached(first.pages.begin(), first.pages.begin() + 2);
  kv.Release(first);
  EXPECT_EQ(kv.pages_idle(), 2);
  EXPECT_EQ(kv.pages_free(), 2);
  EXPECT_EQ(kv.tokens_used(), 0);
  EXPECT_TRUE(kv.CanAcquire(32)) << "idle pages can be freed";
  KvLease second = kv.Begin(cached), third = kv.Begin({cached[0]});
  EXPECT_EQ(kv.tokens_used(), 16) << "a shared page counts once";
  EXPECT_EQ(kv.pages_idle(), 0);
  kv.Extend(second, 17);
  EXPECT_EQ(second.pages.size(), 3u);
  kv.Uncache(cached[1]);
  EXPECT_EQ(kv.pages_free(), 1) << "it is still leased";
  kv.CheckIntegrity();
  kv.Release(second);
  EXPECT_EQ(kv.pages_free(), 3);
  kv.Release(third);
  kv.Uncache(cached[0]);
  EXPECT_EQ(kv.pages_free(), 4);
  kv.CheckIntegrity();
}

TEST(KvCacheDeathTest, OnlyLeasedPagesAreCachedAndOnlyCachedOnesShared) {
  KvCache kv(2, 2, 8);
  KvLease lease = kv.Acquire(8);
  EXPECT_DEATH(kv.Begin(lease.pages), "KERNELS_CHECK");
  EXPECT_DEATH(kv.Cache(1 - lease.pages[0]), "KERNELS_CHECK");
  EXPECT_DEATH(kv.Uncache(lease.pages[0]), "KERNELS_CHECK");
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
