#include "kernels/cpu/large_pages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

namespace ultraspeed::kernels {
namespace {

// A matrix's bytes, all of one value.
struct Filled {
  std::shared_ptr<uint8_t[]> memory;
  size_t num_bytes;
  uint8_t value;

  Filled(size_t size, uint8_t v) : memory(AllocateZeros(size)), num_bytes(size), value(v) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.get()) % 64, 0u);
    EXPECT_TRUE(HasOnly(0)) << "of " << size << " bytes";
    std::memset(memory.get(), value, num_bytes);
  }
  bool HasOnly(uint8_t wanted) const {
    return std::all_of(memory.get(), memory.get() + num_bytes,
                       [&](uint8_t byte) { return byte == wanted; });
  }
  bool IsWhole() const { return HasOnly(value); }
};

// Sizes around those of cache lines, large pages and mappings.
constexpr size_t kSizes[] = {
    1, 63, 64, 65, 24'577, (2 << 20) - 1, 2 << 20, 5 << 20, (16 << 20) + 1, 40 << 20};

TEST(LargePages, IsZeroAlignedAndNobodyElses) {
  std::vector<Filled> all;
  uint8_t value = 1;
  for (int repeat = 0; repeat < 3; ++repeat) {
    for (size_t size : kSizes) all.emplace_back(size, value++);
  }
  for (const Filled& filled : all) EXPECT_TRUE(filled.IsWhole()) << filled.num_bytes;
}

TEST(LargePages, OutlivesItsNeighbours) {
  std::vector<Filled> kept;
  for (uint8_t i = 0; i < 40; ++i) {
    std::vector<Filled> gone;
    for (uint8_t j = 0; j < 5; ++j) gone.emplace_back((size_t{1} << 20) + j, uint8_t(200 + j));
    kept.emplace_back(size_t{300'000} + i, uint8_t(1 + i));
  }
  for (const Filled& filled : kept) EXPECT_TRUE(filled.IsWhole());
}

TEST(LargePages, ThreadsAskAtTheSameTime) {
  std::vector<std::vector<Filled>> of_threads(4);
  {
    std::vector<std::jthread> threads;
    for (size_t t = 0; t < of_threads.size(); ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 100; ++i) of_threads[t].emplace_back(50'000 + i, uint8_t(1 + t));
      });
    }
  }
  for (const auto& all : of_threads) {
    for (const Filled& filled : all) EXPECT_TRUE(filled.IsWhole());
  }
}

}  // namespace
}  // namespace ultraspeed::kernels
