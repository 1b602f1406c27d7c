#include "worker/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/worker/model/synthetic_checkpoint.h"

namespace ultraspeed::worker {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class SafetensorsTest : public testing::Test {
 protected:
  absl::Status Open(const std::string& bytes) {
    WriteBytes(path_, bytes);
    return SafetensorsFile::Open(path_).status();
  }
  absl::Status OpenHeader(const std::string& header, size_t data_bytes = 16) {
    return Open(SafetensorsBytes(header, std::string(data_bytes, '\1')));
  }
  void ExpectRefused(const absl::Status& status, const std::string& what) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path_), HasSubstr(what)));
  }

  TemporaryFolder folder_;
  std::string path_ = folder_.path() + "/x.safetensors";
};

TEST_F(SafetensorsTest, GivesTensorsInTheOrderOfTheirBytes) {
  const std::string header =
      R"({"b":{"dtype":"U8","shape":[2,3],"data_offsets":[4,10]},)"
      R"("__metadata__":{"format":"pt"},)"
      R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  WriteBytes(path_, SafetensorsBytes(header, "0123456789"));
  const auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->tensors().size(), 2u);
  const TensorView& b = (*file)->tensors()[1];
  EXPECT_EQ((*file)->tensors()[0].name, "a");
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.dtype, "U8");
  EXPECT_EQ(b.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(b.data), b.bytes), "456789");
}

TEST_F(SafetensorsTest, EmptyTensorsAndScalarsAreTensors) {
  EXPECT_TRUE(OpenHeader(R"({"empty":{"dtype":"F32","shape":[0,7],"data_offsets":[4,4]},)"
                         R"("scalar":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})").ok());
}

TEST_F(SafetensorsTest, AMissingFileIsNotFound) {
  const absl::Status status = SafetensorsFile::Open(path_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
}

TEST_F(SafetensorsTest, AFolderIsRefused) {
  std::filesystem::create_directory(path_);
  EXPECT_FALSE(SafetensorsFile::Open(path_).ok());
}

TEST_F(SafetensorsTest, EveryTruncationIsRefused) {
  const std::string header = R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})";
  const std::string whole = SafetensorsBytes(header, std::string(16, '\1'));
  ASSERT_TRUE(Open(whole).ok());
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    ExpectRefused(Open(whole.substr(0, bytes)), "");
  }
}

TEST_F(SafetensorsTest, HostileHeaderLengthsAreRefused) {
  for (const uint64_t length : {uint64_t{0}, uint64_t{9}, uint64_t{100} << 20, uint64_t{1} << 62,
                                ~uint64_t{0}, ~uint64_t{7}, ~uint64_t{0} - 15}) {
    std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
    ExpectRefused(Open(bytes + "{}      "), "header");
  }
}

TEST_F(SafetensorsTest, HeadersThatAreNotObjectsAreRefused) {
  for (const char* header : {"", "x", "[]", "7", "{", R"({"a":})", "{}{}"}) {
    ExpectRefused(OpenHeader(header), "header");
  }
  // Deep nesting must not exhaust the stack.
  ExpectRefused(OpenHeader("{\"a\":" + std::string(100000, '[')), "header");
}

TEST_F(SafetensorsTest, DamagedEntriesAreRefusedByName) {
  const char* const kEntries[] = {
      R"(7)",
      R"([])",
      R"({})",
      R"({"shape":[4],"data_offsets":[0,16]})",
      R"({"dtype":"F32","data_offsets":[0,16]})",
      R"({"dtype":"F32","shape":[4]})",
      R"({"dtype":7,"shape":[4],"data_offsets":[0,16]})",
      R"({"dtype":"F33","shape":[4],"data_offsets":[0,16]})",
      R"({"dtype":"","shape":[4],"data_offsets":[0,16]})",
      R"({"dtype":"F32","shape":4,"data_offsets":[0,16]})",
      R"({"dtype":"F32","shape":[-4],"data_offsets":[0,16]})",
      R"({"dtype":"F32","shape":["4"],"data_offsets":[0,16]})",
      R"({"dtype":"F32","shape":[4.5],"data_offsets":[0,16]})",
      R"({"dtype":"F32","shape":[3],"data_offsets":[0,16]})",
      R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,16]})",
      R"({"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]})",
      R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})",
      R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,16]})",
      R"({"dtype":"F32","shape":[4],"data_offsets":[0]})",
      R"({"dtype":"F32","shape":[4],"data_offsets":[0,16,32]})",
      R"({"dtype":"F32","shape":[4],"data_offsets":["0","16"]})",
      R"({"dtype":"F32","shape":[4],"data_offsets":[-16,0]})",
      R"({"dtype":"F32","shape":[4],"data_offsets":[16,0]})",
      R"({"dtype":"F32","shape":[4],"data_offsets":[1,17]})",
      R"({"dtype":"F32","shape":[4],"data_offsets":[18446744073709551600,18446744073709551615]})",
      R"({"dtype":"F32","shape":[0],"data_offsets":[9223372036854775807,9223372036854775807]})"};
  for (const char* entry : kEntries) {
    SCOPED_TRACE(entry);
    ExpectRefused(OpenHeader(std::string("{\"the.tensor\":") + entry + "}"), "tensor the.tensor");
  }
}

TEST_F(SafetensorsTest, OverlappingTensorsAreRefusedByName) {
  for (const char* second : {"[8,16]", "[4,12]", "[0,8]"}) {
    SCOPED_TRACE(second);
    ExpectRefused(
        OpenHeader(std::string(R"({"one":{"dtype":"U8","shape":[12],"data_offsets":[0,12]},)"
                               R"("two":{"dtype":"U8","shape":[8],"data_offsets":)") + second + "}}"),
        "overlaps tensor");
  }
}

}  // namespace
}  // namespace ultraspeed::worker
