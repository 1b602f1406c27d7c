// The container: each way in which a header can lie is refused with file and tensor.
#include "worker/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "tests/temporary_folder.h"
#include "tests/worker/model/synthetic_checkpoint.h"

namespace ultraspeed::worker {
namespace {

using testing::HasSubstr;

std::string SafetensorsBytes(const std::string& header, size_t data_bytes,
                             int64_t claimed_length = -1) {
  const uint64_t length =
      claimed_length >= 0 ? static_cast<uint64_t>(claimed_length) : header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
  return bytes + header + std::string(data_bytes, '\x01');
}

std::string Refusal(const std::string& bytes) {
  TemporaryFolder folder;
  const std::string path = folder.path() + "/m.safetensors";
  WriteBytes(path, bytes);
  const auto file = SafetensorsFile::Open(path);
  if (file.ok()) return "accepted";
  EXPECT_THAT(std::string(file.status().message()), HasSubstr(path));
  return std::string(file.status().message());
}

TEST(SafetensorsTest, ReadsTensorsAtAnyAlignment) {
  TemporaryFolder folder;
  const std::string path = folder.path() + "/m.safetensors";
  WriteBytes(
      path,
      SafetensorsBytes(
          R"({"__metadata__":{"format":"pt"},"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[3,11]}} )",
          11));
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->tensors().size(), 2u);
  EXPECT_EQ((*file)->tensors()[0].name, "b");
  EXPECT_EQ((*file)->tensors()[1].name, "a");
  EXPECT_EQ((*file)->tensors()[1].shape, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ((*file)->tensors()[1].bytes, 8u);
  EXPECT_EQ((*file)->tensors()[1].data, (*file)->tensors()[0].data + 3);
}

TEST(SafetensorsTest, LyingHeadersAreRefused) {
  EXPECT_THAT(Refusal(""), HasSubstr("at least 8 bytes"));
  EXPECT_THAT(Refusal("1234567"), HasSubstr("at least 8 bytes"));
  EXPECT_THAT(Refusal(SafetensorsBytes("{}", 0, 3)),
              HasSubstr("header length is 3; at most 2 is possible"));
  EXPECT_THAT(Refusal(SafetensorsBytes("{}", 0, INT64_MAX)),
              HasSubstr("header length is 9223372036854775807"));
  EXPECT_THAT(Refusal(std::string(8, '\xff') + "{}"),
              HasSubstr("header length is 18446744073709551615"));
  EXPECT_THAT(Refusal(SafetensorsBytes("{", 0)), HasSubstr("not JSON"));
  EXPECT_THAT(Refusal(SafetensorsBytes("[]", 0)), HasSubstr("must be a JSON object"));
  EXPECT_THAT(Refusal(SafetensorsBytes("{}", 0, 1)), HasSubstr("not JSON"));
}

TEST(SafetensorsTest, LyingTensorsAreRefusedByName) {
  const auto tensor = [](const char* entry) {
    return Refusal(SafetensorsBytes(std::string("{\"w\":") + entry + "}", 8));
  };
  EXPECT_THAT(tensor("3"), HasSubstr("tensor w: its entry must be an object"));
  EXPECT_THAT(tensor(R"({"dtype":"F32","shape":[2]})"),
              HasSubstr("tensor w: needs dtype, shape and data_offsets"));
  EXPECT_THAT(tensor(R"({"dtype":"F77","shape":[2],"data_offsets":[0,8]})"),
              HasSubstr("tensor w: dtype \"F77\" is unknown"));
  EXPECT_THAT(tensor(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"),
              HasSubstr("tensor w: has 8 bytes of data; F32 [3] takes 12"));
  EXPECT_THAT(tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[4,12]})"),
              HasSubstr("tensor w: data_offsets [4,12] must ascend and end by 8"));
  EXPECT_THAT(tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"),
              HasSubstr("must ascend"));
  EXPECT_THAT(tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[-8,0]})"),
              HasSubstr("must ascend"));
  EXPECT_THAT(tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]})"),
              HasSubstr("must ascend"));
  EXPECT_THAT(tensor(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"),
              HasSubstr("negative or overflows"));
  EXPECT_THAT(tensor(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]})"),
              HasSubstr("negative or overflows"));
  EXPECT_THAT(tensor(R"({"dtype":"U8","shape":[1,1,1,1,1,1,1,1,8],"data_offsets":[0,8]})"),
              HasSubstr("has 9 dimensions; at most 8"));
  EXPECT_THAT(
      Refusal(SafetensorsBytes(
          R"({"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
          8)),
      HasSubstr("tensor b: overlaps tensor a"));
}

TEST(SafetensorsTest, EveryTruncationIsRefused) {
  const std::string whole =
      SafetensorsBytes(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  EXPECT_EQ(Refusal(whole), "accepted");
  for (size_t bytes = 0; bytes < whole.size(); ++bytes)
    EXPECT_NE(Refusal(whole.substr(0, bytes)), "accepted") << bytes;
}

// Random single-byte damage: refused or read, never a crash (the sanitizer builds watch).
TEST(SafetensorsTest, RandomDamageNeverCrashes) {
  const std::string whole =
      worker::SafetensorsBytes({{"a", {"U8", {4}, "abcd"}}, {"bb", {"BF16", {2, 2}, "efghijkl"}}});
  for (size_t i = 0; i < whole.size(); ++i) {
    for (const char value : {'\0', '\xff', '"', '9', '}', '-'}) {
      std::string damaged = whole;
      damaged[i] = value;
      Refusal(damaged);
    }
  }
}

}  // namespace
}  // namespace ultraspeed::worker
