#include "worker/model/mask_embedding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "tests/worker/model/synthetic_checkpoint.h"
#include "worker/model/stored_zip.h"

namespace ultraspeed::worker {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr int kHidden = 32;

SyntheticMask GoodMask() {
  SyntheticMask mask;
  mask.mask_token_id = 70000;
  mask.elements = kHidden;
  for (int i = 0; i < kHidden; ++i) {
    const kernels::bf16 value = kernels::ToBf16(static_cast<float>(i) - 7.5f);
    mask.embedding.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  return mask;
}

class MaskEmbeddingTest : public testing::Test {
 protected:
  absl::StatusOr<MaskEmbedding> Read(const std::string& bytes) {
    WriteBytes(path_, bytes);
    return ReadMaskEmbedding(path_, kHidden);
  }
  void ExpectRefused(const std::string& bytes, const std::string& what) {
    const absl::Status status = Read(bytes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path_), HasSubstr(what)));
  }
  // The good pickle with `from` replaced by `to`.
  void ExpectPickleRefused(const std::string& from, const std::string& to, const std::string& what) {
    SyntheticMask mask = GoodMask();
    mask.program = MaskPickle(mask);
    const size_t at = mask.program.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    mask.program.replace(at, from.size(), to);
    ExpectRefused(MaskArchive(mask), what);
  }
  void ExpectProgramRefused(const std::string& program, const std::string& what) {
    SyntheticMask mask = GoodMask();
    mask.program = program;
    ExpectRefused(MaskArchive(mask), what);
  }

  TemporaryFolder folder_;
  std::string path_ = folder_.path() + "/mask_embedding.pt";
};

TEST_F(MaskEmbeddingTest, ReadsIdAndVector) {
  const auto mask = Read(MaskArchive(GoodMask()));
  ASSERT_TRUE(mask.ok()) << mask.status();
  EXPECT_EQ(mask->mask_token_id, 70000);
  ASSERT_EQ(mask->embedding.size(), static_cast<size_t>(kHidden));
  for (int i = 0; i < kHidden; ++i) {
    EXPECT_EQ(kernels::FromBf16(mask->embedding[static_cast<size_t>(i)]),
              static_cast<float>(i) - 7.5f);
  }
}

TEST_F(MaskEmbeddingTest, ReadsTheFileOfTheBundledModelsTrainer) {
  const auto mask = ReadMaskEmbedding("models/tiny-mimo/dflash/mask_embedding.pt", 256);
  ASSERT_TRUE(mask.ok()) << mask.status();
  EXPECT_EQ(mask->mask_token_id, 4081);
}

TEST_F(MaskEmbeddingTest, AMissingFileIsNotFound) {
  EXPECT_EQ(ReadMaskEmbedding(path_, kHidden).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(MaskEmbeddingTest, EveryTruncationOfTheArchiveIsRefused) {
  const std::string whole = MaskArchive(GoodMask());
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) ExpectRefused(whole.substr(0, bytes), "");
}

TEST_F(MaskEmbeddingTest, EveryTruncationOfThePickleIsRefused) {
  const std::string whole = MaskPickle(GoodMask());
  for (size_t bytes = 1; bytes < whole.size(); ++bytes) {
    ExpectProgramRefused(whole.substr(0, bytes), "pickle");
  }
}

// Whatever instruction stands first, only the few allowed ones are run.
TEST_F(MaskEmbeddingTest, EveryOtherInstructionIsRefused) {
  const std::string kAllowed = "\x80.(})t\x85\x86KMJ\x88\x89Xqrhj" "cQRus";
  for (int opcode = 0; opcode < 256; ++opcode) {
    const auto byte = static_cast<char>(opcode);
    if (kAllowed.find(byte) != std::string::npos) continue;
    SCOPED_TRACE(opcode);
    ExpectProgramRefused(std::string(1, byte) + MaskPickle(GoodMask()), "is not allowed");
  }
}

TEST_F(MaskEmbeddingTest, OtherGlobalsAreRefusedByName) {
  ExpectPickleRefused("ctorch._utils\n_rebuild_tensor_v2", "cos\nsystem", "os system");
  ExpectPickleRefused("ctorch._utils\n_rebuild_tensor_v2", "cbuiltins\neval", "builtins eval");
  ExpectPickleRefused("BFloat16Storage", "FloatStorage", "torch FloatStorage");
  ExpectPickleRefused("ccollections\nOrderedDict", "ccollections\ndefaultdict", "defaultdict");
}

TEST_F(MaskEmbeddingTest, MisusedStackAndMemoAreRefused) {
  for (const char* program : {".", "R.", "t.", "u.", "s.", "Q.", "\x85.", "\x86.", "q\x01.", "h\x01.",
                              "}}.", "((((.", ")R.", "}(K\x01u.", "K\x01(K\x01K\x02u.",
                              "\x80\x09}.", "X\xff\xff\xff\xff.", "ctorch", "ctorch\n"}) {
    SCOPED_TRACE(testing::PrintToString(std::string(program)));
    ExpectProgramRefused(program, "pickle");
  }
  ExpectProgramRefused(std::string(100000, '('), "too many values");
  ExpectProgramRefused("}.", "and nothing else");
  ExpectProgramRefused("K\x01.", "and nothing else");
}

// A tuple of twice itself, again and again, would fill any memory.
TEST_F(MaskEmbeddingTest, ValuesThatGrowExponentiallyAreRefused) {
  std::string program = ")q\x01";
  for (int i = 0; i < 64; ++i) program += "h\x01h\x01\x86q\x01" "0";
  std::string without_pop = ")q\x01";
  for (int i = 0; i < 40; ++i) without_pop += "h\x01\x86q\x01";
  ExpectProgramRefused(program + ".", "pickle");
  ExpectProgramRefused(without_pop + ".", "pickle");
}

// A tuple within a tuple, a million deep, would exhaust the stack of whoever walks it.
TEST_F(MaskEmbeddingTest, ValuesThatNestWithoutBoundAreRefused) {
  ExpectProgramRefused(")" + std::string(1'000'000, '\x85') + ".", "pickle");
}

TEST_F(MaskEmbeddingTest, OtherTensorsAreRefused) {
  const std::string three = std::string("J\x20\0\0\0", 5);
  // A stride of 2, an offset of 1, and a shape that is not the storage's.
  ExpectPickleRefused(std::string("J\x01\0\0\0", 5), std::string("J\x02\0\0\0", 5), "contiguous");
  ExpectPickleRefused(std::string("QJ\0\0\0\0", 6), std::string("QJ\x01\0\0\0", 6), "contiguous");
  ExpectPickleRefused(three, std::string("J\x10\0\0\0", 5), "contiguous");
  ExpectPickleRefused("mask_token_id", "mask_token_ib", "mask_token_id");
  ExpectPickleRefused("embedding", "embeddinc", "embedding");
}

TEST_F(MaskEmbeddingTest, WrongSizesAndValuesAreRefused) {
  SyntheticMask mask = GoodMask();
  mask.elements = kHidden - 1;
  ExpectRefused(MaskArchive(mask), "embedding: has 31 values");
  mask = GoodMask();
  mask.embedding.pop_back();
  ExpectRefused(MaskArchive(mask), "embedding: its storage must have 64 bytes");
  for (const kernels::bf16 value : {0x7F80, 0xFF80, 0x7FC0}) {
    mask = GoodMask();
    std::memcpy(mask.embedding.data() + 10, &value, sizeof(value));
    ExpectRefused(MaskArchive(mask), "embedding: holds a value that is not finite");
  }
}

TEST_F(MaskEmbeddingTest, DamagedArchivesAreRefused) {
  const std::string pickle = MaskPickle(GoodMask());
  const std::string data = GoodMask().embedding;
  ExpectRefused(StoredZip({{"m/data/0", data}}), "no data.pkl");
  ExpectRefused(StoredZip({{"m/data.pkl", pickle}, {"n/data.pkl", pickle}}), "two data.pkl");
  ExpectRefused(StoredZip({{"m/data.pkl", pickle}, {"m/data.pkl", pickle}}), "appears twice");
  ExpectRefused(StoredZip({{"m/data.pkl", pickle}}), "storage");
  ExpectRefused(StoredZip({{"m/data.pkl", pickle}, {"m/byteorder", "big"}, {"m/data/0", data}}),
                "little-endian");

  const std::string good = MaskArchive(GoodMask());
  const size_t directory = good.find("PK\x01\x02");
  const auto damage = [&](size_t at, char value) {
    std::string bytes = good;
    bytes[at] = value;
    return bytes;
  };
  ExpectRefused(damage(directory, 'Q'), "directory is damaged");
  ExpectRefused(damage(directory + 10, 8), "must be stored");       // deflate
  ExpectRefused(damage(directory + 8, 1), "must be stored");        // encrypted
  ExpectRefused(damage(directory + 45, 0x7F), "header is damaged");  // local header far outside
  ExpectRefused(damage(directory + 28, 0x7F), "");                  // long name
  ExpectRefused(damage(good.find("mask_token_id"), 'M'), "wrong CRC-32");
  ExpectRefused(damage(good.find(data) + 3, 0), "wrong CRC-32");
}

TEST(Crc32Test, MatchesTheStandardsCheckValue) { EXPECT_EQ(Crc32("123456789"), 0xCBF43926u); }

}  // namespace
}  // namespace ultraspeed::worker
