// The file of packed weights: what was written comes back, and a cache of anything else, damaged
// anywhere, cut, or half written is refused with its reason.
#include "worker/model/weights_cache.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/temporary_folder.h"
#include "tests/worker/model/damaged_files.h"

namespace ultraspeed::worker {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

constexpr int64_t kChunk = kCacheChunkBytes;

class WeightsCacheTest : public testing::Test {
 protected:
  std::string path() const {
    return CachePath(folder_.path() + "/cache", "tiny", "cuda", {.index = 3, .count = 8});
  }

  void MakePayload(int64_t bytes) {
    std::mt19937_64 random(static_cast<uint64_t>(bytes));
    payload_.resize(static_cast<size_t>(bytes));
    for (char& byte : payload_) byte = static_cast<char>(random());
    identity_.payload_bytes = bytes;
  }
  absl::Status Write(int num_threads = 3) {
    return WriteWeightsCache(
        path(), identity_, num_threads, [&](int64_t offset, void* out, int64_t bytes) {
          std::memcpy(out, payload_.data() + offset, static_cast<size_t>(bytes));
        });
  }
  absl::StatusOr<std::string> Read(DirectReads direct = DirectReads::kAuto) const {
    const ReadOptions options = {.threads = 3, .direct = direct};
    auto reader = WeightsCacheReader::Open(
        path(), identity_, options,
        std::make_shared<StagingPool>(PlainStaging(), options.window_bytes));
    if (!reader.ok()) return reader.status();
    std::string got;
    while (!(*reader)->done()) {
      const auto chunk = (*reader)->Next();
      if (!chunk.ok()) return chunk.status();
      EXPECT_EQ(chunk->offset, static_cast<int64_t>(got.size()));
      got.append(reinterpret_cast<const char*>(chunk->part.data), chunk->part.bytes);
    }
    return got;
  }
  void ExpectRefused(absl::StatusCode code, const std::string& what) const {
    const absl::Status status = Read().status();
    EXPECT_EQ(status.code(), code) << status << " for " << what;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path()), HasSubstr(what)));
  }
  bool NothingLeft() const { return !fs::exists(path()) && !fs::exists(path() + ".tmp"); }

  TemporaryFolder folder_;
  CacheIdentity identity_ = {.checkpoint = "0123",
                             .layout = "sm_90a probe 77",
                             .rank = {.index = 3, .count = 8},
                             .payload_bytes = 0};
  std::string payload_;
};

TEST_F(WeightsCacheTest, WhatWasWrittenComesBack) {
  EXPECT_THAT(path(), HasSubstr("/cache/tiny.cuda.rank3-of-8.weights"));
  for (const int64_t bytes : {int64_t{1}, int64_t{4095}, int64_t{4096}, kChunk - 1, kChunk,
                              kChunk + 1, 3 * kChunk + 12345}) {
    MakePayload(bytes);
    for (const int threads : {1, 4}) {
      ASSERT_TRUE(Write(threads).ok());
      EXPECT_FALSE(fs::exists(path() + ".tmp"));
      for (const DirectReads direct : {DirectReads::kNever, DirectReads::kAlways}) {
        const auto got = Read(direct);
        ASSERT_TRUE(got.ok()) << got.status();
        EXPECT_TRUE(*got == payload_) << bytes;
      }
    }
  }
}

TEST_F(WeightsCacheTest, TheSameBytesMakeTheSameFile) {
  MakePayload(2 * kChunk + 7);
  ASSERT_TRUE(Write(1).ok());
  const std::string one = ReadBytes(path());
  ASSERT_TRUE(Write(4).ok());
  EXPECT_TRUE(ReadBytes(path()) == one);
}

TEST_F(WeightsCacheTest, WhateverItWasMadeOfIsCompared) {
  MakePayload(100);
  ASSERT_TRUE(Write().ok());
  const CacheIdentity good = identity_;
  const std::pair<const char*, void (*)(CacheIdentity&)> kChanges[] = {
      {"stale: made for \"checkpoint 0123\"; needed is \"checkpoint 0124\"",
       [](CacheIdentity& i) { i.checkpoint = "0124"; }},
      {"stale: made for \"layout sm_90a probe 77\"; needed is \"layout sm_100 probe 77\"",
       [](CacheIdentity& i) { i.layout = "sm_100 probe 77"; }},
      {"stale: made for \"rank 3 of 8\"; needed is \"rank 4 of 8\"",
       [](CacheIdentity& i) { i.rank.index = 4; }},
      {"needed is \"rank 3 of 4\"", [](CacheIdentity& i) { i.rank.count = 4; }},
      {"stale: made for \"payload_bytes 100\"; needed is \"payload_bytes 101\"",
       [](CacheIdentity& i) { i.payload_bytes = 101; }}};
  for (const auto& [what, change] : kChanges) {
    identity_ = good;
    change(identity_);
    ExpectRefused(absl::StatusCode::kFailedPrecondition, what);
  }
  identity_ = good;
  EXPECT_TRUE(Read().ok());
}

TEST_F(WeightsCacheTest, AnotherFormatIsStale) {
  MakePayload(100);
  ASSERT_TRUE(Write().ok());
  std::string bytes = ReadBytes(path());
  ASSERT_EQ(bytes.substr(24, 9), "format 1\n");
  bytes[31] = '2';
  WriteBytes(path(), bytes);
  ExpectRefused(absl::StatusCode::kFailedPrecondition,
                "stale: made for \"format 2\"; needed is \"format 1\"");
}

TEST_F(WeightsCacheTest, NoCacheIsNotFound) {
  MakePayload(100);
  ExpectRefused(absl::StatusCode::kNotFound, "No such file");
}

TEST_F(WeightsCacheTest, EveryByteOfTheHeadIsChecked) {
  MakePayload(2 * kChunk + 5);
  ASSERT_TRUE(Write().ok());
  const std::string good = ReadBytes(path());
  const size_t head = 24 + identity_.Text().size() + 3 * 8;
  for (size_t i = 0; i < head; ++i) {
    const int fd = open(path().c_str(), O_WRONLY);
    const char changed = static_cast<char>(good[i] ^ 0x10);
    ASSERT_EQ(pwrite(fd, &changed, 1, static_cast<off_t>(i)), 1);
    const absl::Status status = Read().status();
    EXPECT_TRUE(status.code() == absl::StatusCode::kDataLoss ||
                status.code() == absl::StatusCode::kFailedPrecondition)
        << "byte " << i << ": " << status;
    ASSERT_EQ(pwrite(fd, &good[i], 1, static_cast<off_t>(i)), 1);
    close(fd);
  }
  EXPECT_TRUE(Read().ok());
}

TEST_F(WeightsCacheTest, DamagedPayloadIsNamedByItsChunk) {
  MakePayload(3 * kChunk + 5);
  ASSERT_TRUE(Write().ok());
  const std::string good = ReadBytes(path());
  const size_t payload = good.size() - payload_.size();
  EXPECT_EQ(payload % 4096, 0u);
  for (const auto& [at, chunk] : {std::pair{size_t{0}, 0},
                                  {static_cast<size_t>(kChunk) - 1, 0},
                                  {static_cast<size_t>(2 * kChunk) + 4711, 2},
                                  {payload_.size() - 1, 3}}) {
    std::string damaged = good;
    damaged[payload + at] = static_cast<char>(damaged[payload + at] + 1);
    WriteBytes(path(), damaged);
    ExpectRefused(absl::StatusCode::kDataLoss,
                  absl::StrCat("damaged: the checksum of chunk ", chunk, " of 4 is "));
  }
}

TEST_F(WeightsCacheTest, AnotherLengthIsDamage) {
  MakePayload(kChunk + 5);
  ASSERT_TRUE(Write().ok());
  const std::string good = ReadBytes(path());
  for (const size_t bytes : {size_t{0}, size_t{23}, size_t{24}, size_t{100}, size_t{4095},
                             size_t{4096}, good.size() - 1}) {
    WriteBytes(path(), good.substr(0, bytes));
    ExpectRefused(absl::StatusCode::kDataLoss, "damaged: it ");
  }
  WriteBytes(path(), good + "x");
  ExpectRefused(absl::StatusCode::kDataLoss, "its head calls for");
  WriteBytes(path(), std::string(good.size(), '\0'));
  ExpectRefused(absl::StatusCode::kDataLoss, "does not begin like a weights cache");
}

TEST_F(WeightsCacheTest, NoRoomIsSaidWithNumbersAndNothingStays) {
  MakePayload(100);
  ASSERT_TRUE(Write().ok());
  identity_.payload_bytes = int64_t{1} << 50;
  const absl::Status status = Write();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(
      std::string(status.message()),
      AllOf(HasSubstr(folder_.path()), HasSubstr("GB free; the cache takes 1125899.91 GB")));
  EXPECT_TRUE(NothingLeft());
}

TEST_F(WeightsCacheTest, AWriteThatFailsInTheMiddleLeavesNothing) {
  MakePayload(4 * kChunk);
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = static_cast<rlim_t>(2 * kChunk);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status status = Write();
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, ignored);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("File too large"));
  EXPECT_TRUE(NothingLeft());
  EXPECT_TRUE(Write().ok());
}

TEST_F(WeightsCacheTest, AFolderThatCannotBeWrittenIsNamed) {
  MakePayload(100);
  WriteBytes(folder_.path() + "/cache", "a file where the folder should be");
  const absl::Status status = Write();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(path()));
}

TEST_F(WeightsCacheTest, OneProcessWritesAtATime) {
  MakePayload(100);
  ASSERT_TRUE(Write().ok());
  const std::string temporary = path() + ".tmp";
  const int other = open(temporary.c_str(), O_RDWR | O_CREAT, 0644);
  ASSERT_EQ(flock(other, LOCK_EX), 0);
  const absl::Status status = Write();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("another process is writing it"));
  EXPECT_TRUE(Read().ok());  // what was there still is
  close(other);              // as when that process dies: its half file is taken over
  EXPECT_TRUE(Write().ok());
  EXPECT_TRUE(Read().ok());
}

TEST_F(WeightsCacheTest, AReaderKeepsTheFileThatItOpened) {
  MakePayload(12 * kChunk);
  ASSERT_TRUE(Write().ok());
  const ReadOptions options = {.threads = 1, .window_bytes = kChunk};
  const auto reader =
      WeightsCacheReader::Open(path(), identity_, options,
                               std::make_shared<StagingPool>(PlainStaging(), options.window_bytes));
  ASSERT_TRUE(reader.ok()) << reader.status();
  const std::string before = payload_;
  for (char& byte : payload_) byte = static_cast<char>(byte + 1);
  ASSERT_TRUE(Write().ok());
  while (!(*reader)->done()) {
    const auto chunk = (*reader)->Next();
    ASSERT_TRUE(chunk.ok()) << chunk.status();
    ASSERT_EQ(std::memcmp(chunk->part.data, before.data() + chunk->offset, chunk->part.bytes), 0);
  }
}

TEST(CheckpointFingerprintTest, ChangesWithEveryFileThatLoadingReads) {
  const TemporaryFolder folder;
  SyntheticCheckpoint checkpoint = MakeSyntheticCheckpoint({});
  checkpoint.Write(folder.path());
  const auto fingerprint = [&] {
    const auto name = CheckpointFingerprint(folder.path());
    EXPECT_TRUE(name.ok()) << name.status();
    return *name;
  };
  std::string last = fingerprint();
  EXPECT_EQ(fingerprint(), last);
  const auto expect_change = [&](const char* what) {
    const std::string now = fingerprint();
    EXPECT_NE(now, last) << what;
    last = now;
  };
  const std::string model = folder.path() + "/model.safetensors";
  const auto time = fs::last_write_time(model);
  fs::last_write_time(model, time + std::chrono::seconds(1));
  expect_change("time");
  WriteBytes(model, ReadBytes(model) + "x");
  fs::last_write_time(model, time + std::chrono::seconds(1));
  expect_change("size");
  WriteBytes(folder.path() + "/config.json", ReadBytes(folder.path() + "/config.json") + " ");
  expect_change("config");
  WriteBytes(folder.path() + "/dflash/mask_embedding.pt", "other");
  expect_change("mask embedding");
  fs::last_write_time(folder.path() + "/dflash/model.safetensors", time - std::chrono::seconds(9));
  expect_change("drafter");
  fs::rename(model, folder.path() + "/other.safetensors");
  expect_change("name");
  WriteBytes(folder.path() + "/README.md", "not read");
  EXPECT_EQ(fingerprint(), last);
  EXPECT_EQ(CheckpointFingerprint(folder.path() + "/none").status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace ultraspeed::worker
