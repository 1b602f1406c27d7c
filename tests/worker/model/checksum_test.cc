// XXH64 against values that its publisher gives, and every branch on length.
#include "worker/model/checksum.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace ultraspeed::worker {
namespace {

TEST(ChecksumTest, PublishedValues) {
  EXPECT_EQ(ChecksumName(Checksum("")), "ef46db3751d8e999");
  EXPECT_EQ(ChecksumName(Checksum("a")), "d24ec4f1a98c6e5b");
  EXPECT_EQ(ChecksumName(Checksum("abc")), "44bc2cf5ad770999");
  EXPECT_EQ(ChecksumName(Checksum("Nobody inspects the spammish repetition")), "fbcea83c8a378bf1");
}

TEST(ChecksumTest, EveryBitOfEveryLengthCounts) {
  std::string bytes;
  std::set<uint64_t> seen = {Checksum(bytes)};
  size_t count = 1;
  for (int length = 1; length < 100; ++length) {
    bytes.push_back(static_cast<char>(length * 7));
    for (size_t bit = 0; bit < bytes.size() * 8; ++bit, ++count) {
      std::string changed = bytes;
      changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ 1 << bit % 8);
      seen.insert(Checksum(changed));
    }
    seen.insert(Checksum(bytes));
    ++count;
  }
  EXPECT_EQ(seen.size(), count);
  EXPECT_NE(Checksum(bytes.data(), bytes.size(), 1), Checksum(bytes));
}

}  // namespace
}  // namespace ultraspeed::worker
