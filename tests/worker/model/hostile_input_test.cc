// Inputs made to exhaust memory, stack or patience rather than to be wrong: each is refused at once
// and by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/temporary_folder.h"
#include "tests/worker/model/damaged_files.h"
#include "worker/model/mask_embedding.h"
#include "worker/model/safetensors.h"
#include "worker/model/stored_zip.h"

namespace ultraspeed::worker {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr int kHidden = 4;
const std::string kStorage(2 * kHidden, '\x3f');

class HostileInputTest : public testing::Test {
 protected:
  void ExpectPickleRefused(const std::string& pickle, const std::string& what = "pickle") {
    WriteBytes(path_, MaskArchive(pickle, kStorage));
    ExpectRefused(ReadMaskEmbedding(path_, kHidden).status(), what);
  }
  void ExpectTensorsRefused(const std::string& bytes, const std::string& what) {
    WriteBytes(path_, bytes);
    ExpectRefused(SafetensorsFile::Open(path_).status(), what);
  }
  void ExpectRefused(const absl::Status& status, const std::string& what) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path_), HasSubstr(what)));
  }

  TemporaryFolder folder_;
  const std::string path_ = folder_.path() + "/hostile";
};

// Whatever instruction stands first, only the few allowed ones are run.
TEST_F(HostileInputTest, EveryOtherPickleInstructionIsRefused) {
  const std::string kAllowed =
      "\x80.(})t\x85\x86KMJ\x88\x89Xqrhj"
      "cQRus";
  for (int opcode = 0; opcode < 256; ++opcode) {
    const auto byte = static_cast<char>(opcode);
    if (kAllowed.find(byte) != std::string::npos) continue;
    SCOPED_TRACE(opcode);
    std::string pickle = MaskPickle(5, kHidden);
    pickle.insert(0, 1, byte);
    ExpectPickleRefused(pickle, "is not allowed");
  }
}

TEST_F(HostileInputTest, AMisusedPickleStackIsRefused) {
  for (const char* program :
       {"R.", "t.", "s.", "Q.", "\x85.", "\x86.", "q\x01.", "}}.", "((((.", ")R.", "}(K\x01u.",
        "K\x01(K\x01K\x02u.", "X\xff\xff\xff\xff.", "ctorch", "ctorch\n"}) {
    SCOPED_TRACE(testing::PrintToString(std::string(program)));
    ExpectPickleRefused(program);
  }
}

// A tuple of itself twice, again and again, doubles: sixty steps would fill any memory.
TEST_F(HostileInputTest, APickleThatGrowsExponentiallyIsRefused) {
  std::string program = ")q\x01";
  for (int i = 0; i < 60; ++i) program += "h\x01h\x01\x86q\x01";
  ExpectPickleRefused(program + ".");
}

// A tuple within a tuple, a million deep, would exhaust the stack of whoever walks it.
TEST_F(HostileInputTest, APickleThatNestsWithoutBoundIsRefused) {
  ExpectPickleRefused(")" + std::string(1'000'000, '\x85') + ".");
}

// Each entry of the memo is a copy.
TEST_F(HostileInputTest, ALongTextInAPickleIsRefused) {
  std::string program("X\0\0\x80\0", 5);
  program += std::string(8 << 20, 'x');
  for (int i = 0; i < 255; ++i) program += {'q', static_cast<char>(i)};
  ExpectPickleRefused(program + ".", "a text is too long");
}

TEST_F(HostileInputTest, HeaderLengthsBeyondTheFileAreRefused) {
  for (const uint64_t length : {uint64_t{9}, uint64_t{100} << 20, uint64_t{1} << 62, ~uint64_t{0},
                                ~uint64_t{7}, ~uint64_t{0} - 15}) {
    const std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
    ExpectTensorsRefused(bytes + "{}      ", "header length");
  }
}

TEST_F(HostileInputTest, ADeeplyNestedHeaderIsRefused) {
  ExpectTensorsRefused(WithHeader("{\"a\":" + std::string(1'000'000, '['), ""), "header");
}

TEST_F(HostileInputTest, NumbersThatOverflowAreRefusedByTensor) {
  for (const char* entry :
       {R"({"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]})",
        R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})",
        R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,16]})",
        R"({"dtype":"U8","shape":[15],"data_offsets":[18446744073709551600,18446744073709551615]})",
        R"({"dtype":"F32","shape":[0],"data_offsets":[9223372036854775807,9223372036854775807]})",
        R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,16]})"}) {
    SCOPED_TRACE(entry);
    ExpectTensorsRefused(
        WithHeader(std::string("{\"the.tensor\":") + entry + "}", std::string(16, '\1')),
        "tensor the.tensor");
  }
}

TEST_F(HostileInputTest, ArchiveDirectoriesThatPointElsewhereAreRefused) {
  const std::string good = MaskArchive(MaskPickle(5, kHidden), kStorage);
  const size_t directory = good.find("PK\x01\x02");
  ASSERT_NE(directory, std::string::npos);
  const auto damage = [&](size_t at, char value) {
    std::string bytes = good;
    bytes[directory + at] = value;
    WriteBytes(path_, bytes);
    return ReadMaskEmbedding(path_, kHidden).status();
  };
  ExpectRefused(damage(0, 'Q'), "directory is damaged");
  ExpectRefused(damage(10, 8), "must be stored");           // deflate
  ExpectRefused(damage(8, 1), "must be stored");            // encrypted
  ExpectRefused(damage(29, 0x7F), "directory is damaged");  // a name of 32 KB
  ExpectRefused(damage(45, 0x7F), "header is damaged");     // local header at 2 GB
}

TEST(Crc32Test, MatchesTheStandardsCheckValue) { EXPECT_EQ(Crc32("123456789"), 0xCBF43926u); }

}  // namespace
}  // namespace ultraspeed::worker
