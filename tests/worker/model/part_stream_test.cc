// The threaded reader: every byte where it belongs, once, whatever the split, the alignment and the
// window; ranks cannot lock each other out; files that change and loads that end early.
#include "worker/model/part_stream.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <latch>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/temporary_folder.h"
#include "tests/worker/model/synthetic_checkpoint.h"

namespace ultraspeed::worker {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr int64_t kMegabyte = int64_t{1} << 20;

std::vector<Rank> Ranks(int count) {
  std::vector<Rank> ranks;
  for (int i = 0; i < count; ++i) ranks.push_back({.index = i, .count = count});
  return ranks;
}

std::string RandomBytes(size_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string out(bytes, '\0');
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    const uint64_t word = random();
    std::memcpy(out.data() + i, &word, 8);
  }
  return out;
}

// Not every file system does.
bool TakesDirectReads(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECT);
  if (fd >= 0) close(fd);
  return fd >= 0;
}

class PartStreamTest : public testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& bytes) {
    const std::string path = folder_.path() + "/" + name;
    WriteBytes(path, bytes);
    return path;
  }

  static std::unique_ptr<PartStream> Open(const std::vector<std::string>& paths,
                                          const std::vector<FileRegion>& regions, int num_ranks,
                                          const ReadOptions& options,
                                          std::shared_ptr<StagingPool> pool = nullptr) {
    if (pool == nullptr) pool = std::make_shared<StagingPool>(PlainStaging(), options.window_bytes);
    auto stream = PartStream::Open(paths, regions, Ranks(num_ranks), options, std::move(pool));
    EXPECT_TRUE(stream.ok()) << stream.status();
    return *std::move(stream);
  }

  TemporaryFolder folder_;
};

// What a rank takes of a region, cut by hand.
std::string Expected(const std::string& file, const FileRegion& region, const Rank& rank) {
  const auto at = static_cast<size_t>(region.offset);
  const auto rows = static_cast<size_t>(region.num_rows),
             row_bytes = static_cast<size_t>(region.row_bytes),
             count = static_cast<size_t>(rank.count), index = static_cast<size_t>(rank.index);
  const std::string all = file.substr(at, rows * row_bytes);
  if (region.split == Split::kWhole) return all;
  if (region.split == Split::kRows)
    return all.substr(index * rows / count * row_bytes, rows / count * row_bytes);
  std::string out;
  for (size_t row = 0; row < rows; ++row)
    out += all.substr(row * row_bytes + index * row_bytes / count, row_bytes / count);
  return out;
}

TEST_F(PartStreamTest, EveryRankGetsItsBytesOfEveryRegionInOrder) {
  const std::string contents[] = {RandomBytes(9 * kMegabyte + 12345, 1), RandomBytes(70001, 2)};
  const std::vector<std::string> paths = {Write("a", contents[0]), Write("b", contents[1])};
  std::mt19937_64 random(7);
  std::vector<FileRegion> regions = {
      // Several pieces, at odd places, up to the last byte.
      {.file = 0, .offset = 4091, .num_rows = 8, .row_bytes = kMegabyte, .split = Split::kWhole},
      {.file = 0, .offset = 12345, .num_rows = 1024, .row_bytes = 9216, .split = Split::kColumns},
      {.file = 0, .offset = 12345, .num_rows = 16, .row_bytes = 589824, .split = Split::kRows},
      {.file = 1, .offset = 0, .num_rows = 70001, .row_bytes = 1, .split = Split::kWhole}};
  for (int i = 0; i < 200; ++i) {
    const int file = static_cast<int>(random() % 2);
    FileRegion region{.file = file,
                      .num_rows = static_cast<int64_t>(8 * (1 + random() % 9)),
                      .row_bytes = static_cast<int64_t>(8 * (1 + random() % 90)),
                      .split = static_cast<Split>(random() % 3)};
    const size_t bytes = static_cast<size_t>(region.num_rows * region.row_bytes);
    region.offset = random() % (contents[file].size() - bytes);
    regions.push_back(region);
  }
  for (const int count : {1, 2, 8}) {
    int64_t bytes = 0;
    for (const FileRegion& region : regions) bytes += region.num_rows * region.row_bytes;
    for (const DirectReads direct : {DirectReads::kNever, DirectReads::kAlways}) {
      for (const int64_t window : {int64_t{1}, 64 * kMegabyte}) {
        const auto stream =
            Open(paths, regions, count, {.threads = 4, .direct = direct, .window_bytes = window});
        std::vector<std::thread> threads;
        for (const Rank& rank : Ranks(count)) {
          threads.emplace_back([&, rank] {
            for (size_t i = 0; i < regions.size(); ++i) {
              const auto part = stream->Next(rank.index);
              ASSERT_TRUE(part.ok()) << part.status();
              const std::string_view got(reinterpret_cast<const char*>(part->data), part->bytes);
              ASSERT_TRUE(got == Expected(contents[regions[i].file], regions[i], rank))
                  << "region " << i << " rank " << rank.index << " of " << count;
            }
          });
        }
        for (std::thread& thread : threads) thread.join();
        EXPECT_EQ(stream->statistics().bytes, bytes);
        EXPECT_EQ(stream->statistics().direct_bytes,
                  direct == DirectReads::kAlways && TakesDirectReads(paths[0]) ? bytes : 0);
      }
    }
  }
}

TEST_F(PartStreamTest, AutoGoesPastThePageCacheForFilesThatAreNotInIt) {
  const std::string contents = RandomBytes(8 * kMegabyte, 12);
  const std::string path = Write("a", contents);
  if (!TakesDirectReads(path)) GTEST_SKIP() << "no direct reads in " << path;
  const auto direct_bytes = [&] {
    const auto stream = Open({path}, {{.row_bytes = 8 * kMegabyte}}, 1,
                             {.threads = 2, .direct = DirectReads::kAuto});
    const auto part = stream->Next(0);
    EXPECT_TRUE(part.ok() && std::string_view(reinterpret_cast<const char*>(part->data),
                                              part->bytes) == contents);
    return stream->statistics().direct_bytes;
  };
  EXPECT_EQ(direct_bytes(), 0);  // just written
  const int fd = open(path.c_str(), O_RDONLY);
  ASSERT_EQ(fsync(fd), 0);
  ASSERT_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
  close(fd);
  EXPECT_EQ(direct_bytes(), 8 * kMegabyte);
}

TEST_F(PartStreamTest, OneRankOfManyAloneGetsTheSame) {
  const std::string contents = RandomBytes(kMegabyte, 3);
  const std::string path = Write("a", contents);
  std::vector<FileRegion> regions;
  for (const Split split : {Split::kColumns, Split::kRows, Split::kWhole})
    regions.push_back({.offset = 77, .num_rows = 256, .row_bytes = 1024, .split = split});
  const Rank rank = {.index = 5, .count = 8};
  auto stream = PartStream::Open({path}, regions, {rank}, {.threads = 2},
                                 std::make_shared<StagingPool>(PlainStaging(), kMegabyte));
  ASSERT_TRUE(stream.ok());
  for (const FileRegion& region : regions) {
    const auto part = (*stream)->Next(5);
    ASSERT_TRUE(part.ok());
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(part->data), part->bytes),
              Expected(contents, region, rank));
  }
}

// Rank 0 holds everything it gets and asks for more; the window would fit one region.
TEST_F(PartStreamTest, ARankThatHoldsItsPartsDoesNotStopTheOthers) {
  const std::string path = Write("a", RandomBytes(kMegabyte, 4));
  std::vector<FileRegion> regions;
  for (int i = 0; i < 64; ++i) {
    regions.push_back({.offset = static_cast<uint64_t>(i) * 8192,
                       .num_rows = 8,
                       .row_bytes = 1024,
                       .split = i % 2 == 0 ? Split::kRows : Split::kColumns});
  }
  const auto stream = Open({path}, regions, 4, {.threads = 3, .window_bytes = 16384});
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 4; ++rank) {
    threads.emplace_back([&, rank] {
      std::vector<StagedPart> held;
      for (size_t i = 0; i < regions.size(); ++i) {
        auto part = stream->Next(rank);
        ASSERT_TRUE(part.ok()) << part.status();
        if (rank == 0) held.push_back(*std::move(part));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(PartStreamTest, ReadsNoFurtherAheadThanItsWindow) {
  constexpr int64_t kRegion = 64 * 1024, kWindow = 8 * kRegion;
  const std::string path = Write("a", RandomBytes(64 * kRegion, 5));
  std::vector<FileRegion> regions;
  for (int i = 0; i < 64; ++i)
    regions.push_back({.offset = static_cast<uint64_t>(i * kRegion), .row_bytes = kRegion});
  const auto pool = std::make_shared<StagingPool>(PlainStaging(), kWindow);
  const auto stream = Open({path}, regions, 1, {.threads = 4, .window_bytes = kWindow}, pool);
  for (size_t i = 0; i < regions.size(); ++i) {
    ASSERT_TRUE(stream->Next(0).ok());
    EXPECT_LE(stream->statistics().bytes, static_cast<int64_t>(i + 2) * kRegion + kWindow);
  }
  EXPECT_LE(pool->bytes_held_max(), kWindow + 2 * kRegion);  // and what was waited for
  EXPECT_GE(pool->bytes_held_max(), kRegion);
}

TEST_F(PartStreamTest, AFileThatEndsEarlyIsNamed) {
  for (const DirectReads direct : {DirectReads::kNever, DirectReads::kAlways}) {
    for (const int64_t left : {0, 5000, 8192}) {
      const std::string path = Write("short", RandomBytes(kMegabyte, 6));
      const std::vector<FileRegion> regions = {{.offset = 100, .row_bytes = 4000},
                                               {.offset = 4100, .row_bytes = 900000}};
      std::filesystem::resize_file(path, static_cast<uintmax_t>(left));  // after it was measured
      const auto stream = Open({path}, regions, 1, {.threads = 1, .direct = direct});
      absl::Status status = stream->Next(0).status();
      if (status.ok()) status = stream->Next(0).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
      EXPECT_THAT(std::string(status.message()),
                  AllOf(HasSubstr(path),
                        HasSubstr(absl::StrCat("ends before byte ", left < 5000 ? 4100 : 904100))));
      EXPECT_EQ(stream->Next(0).status(), status);
    }
  }
}

TEST_F(PartStreamTest, AFileThatIsNotThereIsNamed) {
  const auto stream =
      PartStream::Open({folder_.path() + "/none"}, {{.row_bytes = 1}}, Ranks(1), {.threads = 1},
                       std::make_shared<StagingPool>(PlainStaging(), kMegabyte));
  EXPECT_EQ(stream.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(stream.status().message()), HasSubstr("/none: No such file"));
}

// Also of regions that are cut for it alone, and while others wait.
TEST_F(PartStreamTest, WhoLeavesIsWaitedForNoMore) {
  const std::string contents = RandomBytes(kMegabyte, 11);
  const std::string path = Write("a", contents);
  std::vector<FileRegion> regions;
  for (int i = 0; i < 60; ++i) {
    regions.push_back({.offset = static_cast<uint64_t>(i) * 16384,
                       .num_rows = 8,
                       .row_bytes = 2048,
                       .split = static_cast<Split>(i % 3)});
  }
  const auto stream = Open({path}, regions, 4, {.threads = 2, .window_bytes = 40000});
  std::latch others(3);  // that have not left yet
  std::vector<std::thread> threads;
  for (int index = 0; index < 4; ++index) {
    threads.emplace_back([&, index] {
      for (size_t i = 0; i < regions.size(); ++i) {
        if (index > 0 && i == static_cast<size_t>(7 * index)) {
          stream->Leave(index);
          others.count_down();
          return;
        }
        if (index == 0 && i == 30) others.wait();
        const auto part = stream->Next(index);
        ASSERT_TRUE(part.ok()) << part.status();
        EXPECT_EQ(std::string(reinterpret_cast<const char*>(part->data), part->bytes),
                  Expected(contents, regions[i], {.index = index, .count = 4}));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LT(stream->statistics().bytes, 60 * 16384);
}

TEST_F(PartStreamTest, FailWakesWhoeverWaits) {
  const std::string path = Write("a", RandomBytes(kMegabyte, 8));
  std::vector<FileRegion> regions(
      100, {.num_rows = 2, .row_bytes = kMegabyte / 2, .split = Split::kRows});
  const auto stream = Open({path}, regions, 2, {.threads = 2, .window_bytes = kMegabyte});
  std::thread waiting([&] {  // until the window is full of rank 1's parts, and then for ever
    absl::Status status;
    while (status.ok()) {
      const auto part = stream->Next(0);
      status = part.status();
    }
    EXPECT_EQ(status.message(), "rank 1 has gone");
  });
  ASSERT_TRUE(stream->Next(1).ok());
  stream->Fail(absl::InternalError("rank 1 has gone"));
  stream->Fail(absl::InternalError("too late"));
  waiting.join();
}

TEST_F(PartStreamTest, PartsOutliveTheirStreamAndPool) {
  const std::string contents = RandomBytes(kMegabyte, 9);
  const std::string path = Write("a", contents);
  StagedPart part;
  {
    const auto stream = Open({path}, std::vector<FileRegion>(50, {.offset = 3, .row_bytes = 5000}),
                             1, {.threads = 2, .window_bytes = 20000});
    part = *stream->Next(0);
  }
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(part.data), part.bytes),
            contents.substr(3, 5000));
}

TEST_F(PartStreamTest, MemoryThatIsRefusedIsAnError) {
  const std::string path = Write("a", RandomBytes(kMegabyte, 10));
  const StagingMemory none = {.allocate = [](size_t) -> void* { return nullptr; },
                              .release = [](void*) {}};
  const auto stream = Open({path}, {{.row_bytes = 5000}}, 1, {.threads = 2},
                           std::make_shared<StagingPool>(none, kMegabyte));
  const absl::Status status = stream->Next(0).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("13312 bytes"), HasSubstr(path)));
}

TEST(StagingPoolTest, BlocksAreUsedAgainAndOtherSizesGivenUpForThem) {
  int allocated = 0, released = 0;
  const StagingMemory counted = {.allocate =
                                     [&](size_t bytes) {
                                       ++allocated;
                                       return std::aligned_alloc(kReadAlignment, bytes);
                                     },
                                 .release =
                                     [&](void* block) {
                                       ++released;
                                       std::free(block);
                                     }};
  {
    const auto pool = std::make_shared<StagingPool>(counted, 100000);
    for (int i = 0; i < 10; ++i) EXPECT_NE(pool->Take(40000, false), nullptr);
    EXPECT_EQ(allocated, 1);
    const auto first = pool->Take(40000, false), second = pool->Take(40000, false);
    EXPECT_EQ(allocated, 2);
    EXPECT_EQ(pool->Take(40000, false), nullptr);  // the window is full
    EXPECT_NE(pool->Take(40000, true), nullptr);   // but for what is waited for
    EXPECT_EQ(released, 1);                        // which went at once
  }
  EXPECT_EQ(allocated, released);
  {
    allocated = released = 0;
    const auto pool = std::make_shared<StagingPool>(counted, 100000);
    pool->Take(40000, false).reset();
    EXPECT_NE(pool->Take(80000, false), nullptr);
    EXPECT_EQ(released, 1);
  }
  EXPECT_EQ(allocated, released);
}

}  // namespace
}  // namespace ultraspeed::worker
