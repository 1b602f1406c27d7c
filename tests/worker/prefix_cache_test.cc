#include "worker/prefix_cache.h"

#include <gtest/gtest.h>

#include <numeric>

namespace ultraspeed::worker {
namespace {

constexpr int kPage = 4;

// 0, 1, .. as tokens, `count` of them; from position `parts_at` on other ones.
std::vector<int32_t> Text(int count, int parts_at = 1000, int32_t other = 500) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), 0);
  for (int i = parts_at; i < count; ++i) tokens[static_cast<size_t>(i)] += other;
  return tokens;
}

class PrefixCacheTest : public testing::Test {
 protected:
  // A sequence over `tokens` that ends, kept whole. Its pages.
  std::vector<int32_t> KeepEnded(const std::vector<int32_t>& tokens, const char* scope = "") {
    KvLease lease = kv_.Acquire(static_cast<int64_t>(tokens.size()));
    const std::vector<int32_t> pages = lease.pages;
    last_snapshot_ = prefixes_.Keep(scope, tokens, pages);
    kv_.Release(lease);
    prefixes_.CheckIntegrity();
    kv_.CheckIntegrity();
    return pages;
  }

  KvCache kv_{4, 16, kPage};
  PrefixCache prefixes_{kv_, 2};
  int last_snapshot_ = -1;
};

TEST_F(PrefixCacheTest, FindsTheLongestBeginningWithASnapshot) {
  const std::vector<int32_t> pages = KeepEnded(Text(12));
  EXPECT_GE(last_snapshot_, 0);
  const PrefixMatch match = prefixes_.Find("", Text(30));
  EXPECT_EQ(match.num_tokens, 12);
  EXPECT_EQ(match.num_known, 12);
  EXPECT_EQ(match.pages, pages);
  EXPECT_EQ(match.snapshot, last_snapshot_);
}

TEST_F(PrefixCacheTest, APartOfAPageIsNoMatch) {
  KeepEnded(Text(12));
  EXPECT_EQ(prefixes_.Find("", Text(11)).num_tokens, 0) << "the snapshot is at 12";
  EXPECT_EQ(prefixes_.Find("", Text(11)).num_known, 8);
  EXPECT_EQ(prefixes_.Find("", Text(30, 3)).num_known, 0);
  EXPECT_EQ(prefixes_.Find("", {}).num_known, 0);
}

TEST_F(PrefixCacheTest, WhereTwoPartBothAreFound) {
  const std::vector<int32_t> first = KeepEnded(Text(12));
  const std::vector<int32_t> second = KeepEnded(Text(16, 8));
  EXPECT_EQ(prefixes_.Find("", Text(12)).pages, first);
  const PrefixMatch match = prefixes_.Find("", Text(20, 8));
  EXPECT_EQ(match.num_tokens, 16);
  EXPECT_EQ(match.pages, (std::vector<int32_t>{first[0], first[1], second[2], second[3]}))
      << "what both begin with is kept once";
  EXPECT_EQ(kv_.pages_idle(), 5);
  EXPECT_EQ(prefixes_.Find("", Text(20, 8, 700)).num_known, 8) << "a third one parts there, too";
}

TEST_F(PrefixCacheTest, ScopesShareNothing) {
  KeepEnded(Text(8), "a");
  EXPECT_EQ(prefixes_.Find("b", Text(9)).num_known, 0);
  EXPECT_EQ(prefixes_.Find("", Text(9)).num_known, 0);
  KeepEnded(Text(8), "b");
  EXPECT_EQ(kv_.pages_idle(), 4);
  EXPECT_EQ(prefixes_.Find("a", Text(9)).num_tokens, 8);
}

TEST_F(PrefixCacheTest, KeepingTwiceChangesNothing) {
  const std::vector<int32_t> pages = KeepEnded(Text(8));
  KeepEnded(Text(8));
  EXPECT_EQ(last_snapshot_, -1);
  EXPECT_EQ(kv_.pages_idle(), 2);
  EXPECT_EQ(prefixes_.Find("", Text(9)).pages, pages);
}

TEST_F(PrefixCacheTest, TheSnapshotUsedLeastRecentlyGoesFirst) {
  KeepEnded(Text(4));
  KeepEnded(Text(4, 0));
  EXPECT_EQ(prefixes_.Find("", Text(5)).num_tokens, 4);
  KeepEnded(Text(4, 0, 700));
  EXPECT_EQ(prefixes_.Find("", Text(5)).num_tokens, 4);
  const PrefixMatch lost = prefixes_.Find("", Text(5, 0));
  EXPECT_EQ(lost.num_tokens, 0);
  EXPECT_EQ(lost.num_known, 4) << "its pages are still there";
}

TEST_F(PrefixCacheTest, RoomIsMadeFromWhatWasUsedLeastRecently) {
  KeepEnded(Text(16));
  KeepEnded(Text(16, 8));
  KeepEnded(Text(16, 0), "b");
  EXPECT_EQ(kv_.pages_free(), 16 - 4 - 2 - 4);
  EXPECT_EQ(prefixes_.Find("", Text(16)).num_tokens, 0) << "its snapshot was needed elsewhere";
  prefixes_.MakeRoom(8);
  prefixes_.CheckIntegrity();
  EXPECT_EQ(kv_.pages_free(), 8);
  EXPECT_EQ(prefixes_.Find("", Text(16)).num_known, 16);
  EXPECT_EQ(prefixes_.Find("", Text(16, 8)).num_known, 8) << "the leaves of the older path went";
  prefixes_.MakeRoom(16);
  prefixes_.CheckIntegrity();
  EXPECT_EQ(kv_.pages_free(), 16);
  EXPECT_EQ(prefixes_.Find("b", Text(16, 0)).num_known, 0);
}

TEST_F(PrefixCacheTest, LeasedPagesStayWithTheirSequence) {
  KeepEnded(Text(8));
  const PrefixMatch match = prefixes_.Find("", Text(9));
  KvLease lease = kv_.Begin(match.pages);
  prefixes_.MakeRoom(14);
  kv_.Extend(lease, 64);
  EXPECT_EQ(kv_.pages_free(), 0);
  kv_.CheckIntegrity();
  EXPECT_EQ(prefixes_.Keep("", Text(8), lease.pages), -1);
  kv_.Release(lease);
  EXPECT_EQ(kv_.pages_idle(), 2);
  prefixes_.CheckIntegrity();
}

TEST_F(PrefixCacheTest, WithoutSnapshotsNothingIsKept) {
  PrefixCache none(kv_, 0);
  KvLease lease = kv_.Acquire(8);
  EXPECT_EQ(none.Keep("", Text(8), lease.pages), -1);
  EXPECT_EQ(none.Find("", Text(9)).num_known, 0);
  kv_.Release(lease);
  EXPECT_EQ(kv_.pages_free(), 16);
}

}  // namespace
}  // namespace ultraspeed::worker
