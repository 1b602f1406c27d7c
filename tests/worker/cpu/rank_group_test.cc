// Sums over ranks: rank order, every time, on every rank.
#include "worker/cpu/rank_group.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <random>

namespace ultraspeed::worker {
namespace {

// Values whose sum depends on the order in which they are added.
std::vector<std::vector<float>> Parts(int num_ranks, size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> exponent(-20, 20);
  std::vector<std::vector<float>> parts(static_cast<size_t>(num_ranks), std::vector<float>(count));
  for (std::vector<float>& part : parts) {
    for (float& value : part)
      value = std::ldexp(random() % 2 == 0 ? 1.1f : -0.9f, static_cast<int>(exponent(random)));
  }
  return parts;
}

TEST(RankGroupTest, SumsAreAddedInRankOrderOnEveryRank) {
  for (const int num_ranks : {1, 2, 3, 4, 8}) {
    RankGroup group(num_ranks, 5000);
    for (const size_t count : {size_t{0}, size_t{1}, size_t{7}, size_t{129}, size_t{5000}}) {
      std::vector<std::vector<float>> parts = Parts(num_ranks, count, 1);
      std::vector<float> expected = parts[0];
      for (size_t rank = 1; rank < parts.size(); ++rank) {
        for (size_t i = 0; i < count; ++i) expected[i] += parts[rank][i];
      }
      group.Run([&](int rank) { group.Sum(rank, parts[static_cast<size_t>(rank)].data(), count); });
      for (const std::vector<float>& part : parts) EXPECT_EQ(part, expected);
    }
  }
}

// Without the right order between two sums, a slow rank would read what a fast one has overwritten.
TEST(RankGroupTest, ManySumsInARowDoNotMix) {
  constexpr int kRanks = 4, kSums = 2000;
  constexpr size_t kCount = 33;
  RankGroup group(kRanks, kCount);
  std::atomic<int> num_wrong{0};
  group.Run([&](int rank) {
    std::vector<float> data(kCount);
    for (int round = 0; round < kSums; ++round) {
      for (size_t i = 0; i < kCount; ++i)
        data[i] = static_cast<float>(round * (rank + 1)) + static_cast<float>(i);
      group.Sum(rank, data.data(), kCount);
      for (size_t i = 0; i < kCount; ++i) {
        if (data[i] != static_cast<float>(round * 10) + 4 * static_cast<float>(i)) ++num_wrong;
      }
    }
  });
  EXPECT_EQ(num_wrong, 0);
}

TEST(RankGroupTest, EveryRankRunsOnceAndRankZeroOnTheCaller) {
  RankGroup group(8, 1);
  std::vector<int> runs(8);
  std::thread::id first;
  for (int i = 0; i < 100; ++i) {
    group.Run([&](int rank) {
      ++runs[static_cast<size_t>(rank)];
      if (rank == 0) first = std::this_thread::get_id();
    });
  }
  EXPECT_EQ(runs, std::vector<int>(8, 100));
  EXPECT_EQ(first, std::this_thread::get_id());
}

}  // namespace
}  // namespace ultraspeed::worker
