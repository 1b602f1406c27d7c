// mask_embedding.pt: the one value it may hold, and that nothing else in a pickle is ever followed.
#include "worker/model/mask_embedding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/temporary_folder.h"
#include "tests/worker/model/synthetic_checkpoint.h"

namespace ultraspeed::worker {
namespace {

using testing::HasSubstr;

constexpr int kHidden = 4;
const std::string kStorage("\x80\x3f\x00\x40\x40\x40\x80\x40", 8);  // 1, 2, 3, 4

std::string RefusalOfFile(const std::string& bytes) {
  TemporaryFolder folder;
  const std::string path = folder.path() + "/mask_embedding.pt";
  WriteBytes(path, bytes);
  const auto mask = ReadMaskEmbedding(path, kHidden);
  if (mask.ok()) return "accepted";
  EXPECT_THAT(std::string(mask.status().message()), HasSubstr(path));
  return std::string(mask.status().message());
}

std::string Refusal(const std::string& pickle, const std::string& storage = kStorage) {
  return RefusalOfFile(StoredZipBytes({{"archive/data.pkl", pickle}, {"archive/data/0", storage}}));
}

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos);
  return text.replace(at, from.size(), to);
}

TEST(MaskEmbeddingTest, ReadsIdAndVectorUnderAnyArchiveName) {
  for (const char* prefix : {"archive/", "mask_embedding/", "a/b/"}) {
    TemporaryFolder folder;
    const std::string path = folder.path() + "/m.pt";
    WriteBytes(path, StoredZipBytes({{std::string(prefix) + "data.pkl", MaskPickle(70000, kHidden)},
                                     {std::string(prefix) + "byteorder", "little"},
                                     {std::string(prefix) + "data/0", kStorage},
                                     {std::string(prefix) + "version", "3\n"}}));
    const auto mask = ReadMaskEmbedding(path, kHidden);
    ASSERT_TRUE(mask.ok()) << mask.status();
    EXPECT_EQ(mask->mask_token_id, 70000);
    EXPECT_EQ(mask->embedding, (std::vector<kernels::bf16>{0x3f80, 0x4000, 0x4040, 0x4080}));
  }
}

TEST(MaskEmbeddingTest, OtherPicklesAreRefused) {
  const std::string good = MaskPickle(5, kHidden);
  EXPECT_EQ(Refusal(good), "accepted");
  EXPECT_THAT(Refusal("\x80\x02"
                      "cos\nsystem\nX\x02\x00\x00\x00lsR."),
              HasSubstr("refers to \"os system\""));
  EXPECT_THAT(Refusal(Replaced(good, "torch\nBFloat16Storage", "torch\nFloatStorage")),
              HasSubstr("refers to \"torch FloatStorage\""));
  EXPECT_THAT(Refusal(Replaced(good, "collections\nOrderedDict", "builtins\neval")),
              HasSubstr("refers to \"builtins eval\""));
  EXPECT_THAT(Refusal(Replaced(good, "mask_token_id", "mask_token_xx")),
              HasSubstr("must hold {mask_token_id: int, embedding: tensor}"));
  EXPECT_THAT(Refusal(MaskPickle(5, 5)),
              HasSubstr("embedding: has 5 values; the config calls for 4"));
  EXPECT_THAT(Refusal(good, kStorage.substr(2)), HasSubstr("its storage must have 8 bytes"));
  EXPECT_THAT(Refusal(good, std::string(8, '\xff')), HasSubstr("not finite"));
  EXPECT_THAT(Refusal("\x80\x06."), HasSubstr("protocol above 5"));
  EXPECT_THAT(Refusal("i__main__\nX\n."), HasSubstr("instruction 105 is not allowed"));
  EXPECT_THAT(Refusal("."), HasSubstr("pickle leaves 0 values"));
  EXPECT_THAT(Refusal(std::string(5000, '(')), HasSubstr("too many values"));
  EXPECT_THAT(Refusal("h\x01."), HasSubstr("memo misused"));
  EXPECT_THAT(Refusal("u."), HasSubstr("no mark"));
}

TEST(MaskEmbeddingTest, EveryTruncationOfThePickleIsRefused) {
  const std::string good = MaskPickle(5, kHidden);
  for (size_t bytes = 0; bytes < good.size(); ++bytes)
    EXPECT_NE(Refusal(good.substr(0, bytes)), "accepted") << bytes;
}

TEST(MaskEmbeddingTest, RandomDamageOfTheFileIsRefusedOrHarmless) {
  const std::string good =
      StoredZipBytes({{"a/data.pkl", MaskPickle(5, kHidden)}, {"a/data/0", kStorage}});
  for (size_t i = 0; i < good.size(); ++i) {
    for (const char value : {'\0', '\xff', '(', 'R', '\x7f'}) {
      std::string damaged = good;
      damaged[i] = value;
      RefusalOfFile(
          damaged);  // may be read (times and attributes carry no meaning), must not crash
    }
  }
  for (size_t bytes = 0; bytes < good.size(); ++bytes)
    EXPECT_NE(RefusalOfFile(good.substr(0, bytes)), "accepted");
}

TEST(MaskEmbeddingTest, DamagedArchivesAreRefused) {
  EXPECT_THAT(RefusalOfFile("PK"), HasSubstr("too short for a zip archive"));
  EXPECT_THAT(RefusalOfFile(std::string(100, 'x')), HasSubstr("no end of a zip archive"));
  EXPECT_THAT(RefusalOfFile(StoredZipBytes({{"a/x", "y"}})), HasSubstr("has no data.pkl"));
  EXPECT_THAT(RefusalOfFile(StoredZipBytes({{"a/data.pkl", "."}, {"b/data.pkl", "."}})),
              HasSubstr("has two data.pkl"));
  EXPECT_THAT(RefusalOfFile(StoredZipBytes({{"a/data.pkl", MaskPickle(5, kHidden)},
                                            {"a/byteorder", "big"},
                                            {"a/data/0", kStorage}})),
              HasSubstr("little-endian"));
  std::string damaged =
      StoredZipBytes({{"a/data.pkl", MaskPickle(5, kHidden)}, {"a/data/0", kStorage}});
  damaged[damaged.find(kStorage)] ^= 1;
  EXPECT_THAT(RefusalOfFile(damaged), HasSubstr("entry a/data/0: wrong CRC-32"));
}

}  // namespace
}  // namespace ultraspeed::worker
