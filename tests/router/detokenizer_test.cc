#include "router/detokenizer.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "router/unicode.h"
#include "tests/router/test_tokenizer.h"

namespace ultraspeed::router {
namespace {

// The id of the token that is this one byte.
int32_t ByteId(char byte) {
  for (int32_t id = 0; id < TestTokenizer().vocabulary_size(); ++id) {
    if (TestTokenizer().TokenBytes(id) == absl::string_view(&byte, 1)) return id;
  }
  ADD_FAILURE() << "no token for byte " << static_cast<int>(static_cast<unsigned char>(byte));
  return 0;
}

std::string DecodeBytes(absl::string_view bytes) {
  Detokenizer detokenizer(&TestTokenizer());
  std::string text;
  for (const char byte : bytes) absl::StrAppend(&text, detokenizer.Append({ByteId(byte)}));
  return absl::StrCat(text, detokenizer.Finish());
}

TEST(DetokenizerTest, HoldsBackPartsOfACharacter) {
  Detokenizer detokenizer(&TestTokenizer());
  EXPECT_EQ(detokenizer.Append({ByteId('a'), ByteId('\xF0')}), "a");
  EXPECT_EQ(detokenizer.Append({ByteId('\x9F')}), "");
  EXPECT_EQ(detokenizer.Append({ByteId('\x98')}), "");
  EXPECT_EQ(detokenizer.Append({ByteId('\x80'), ByteId('b')}),
            "\xF0\x9F\x98\x80"
            "b");
  EXPECT_EQ(detokenizer.Finish(), "");
}

TEST(DetokenizerTest, ReplacesWhatCanNoLongerBecomeACharacter) {
  EXPECT_EQ(DecodeBytes("\xFF"), "\xEF\xBF\xBD");
  EXPECT_EQ(DecodeBytes("a\x80z"), "a\xEF\xBF\xBDz");
  EXPECT_EQ(DecodeBytes("\xE4\xB8x"), "\xEF\xBF\xBDx");  // one maximal part
  EXPECT_EQ(DecodeBytes("\xED\xA0\x80"),
            "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");       // a surrogate is three
  EXPECT_EQ(DecodeBytes("\xF0\x9F\x98"), "\xEF\xBF\xBD");  // unfinished at the end
  EXPECT_EQ(DecodeBytes("\xC3\xC3\xA9"), "\xEF\xBF\xBD\xC3\xA9");
}

TEST(DetokenizerTest, SpecialTokensHaveNoTextButThinkHas) {
  Detokenizer detokenizer(&TestTokenizer());
  EXPECT_EQ(detokenizer.Append({*TestTokenizer().TokenId("<think>"), ByteId('x'),
                                *TestTokenizer().TokenId("<|im_end|>")}),
            "<think>x");
  EXPECT_EQ(detokenizer.Append({-1, 1 << 29}), "");
}

TEST(DetokenizerTest, ChunkingDoesNotMatterAndEveryChunkIsUtf8) {
  std::mt19937_64 random(TestSeed());
  for (int i = 0; i < 1000; ++i) {
    std::vector<int32_t> ids(random() % 50);
    for (int32_t& id : ids)
      id =
          static_cast<int32_t>(random() % static_cast<uint64_t>(TestTokenizer().vocabulary_size()));
    Detokenizer whole(&TestTokenizer()), parts(&TestTokenizer());
    const std::string all = whole.Append(ids);
    const std::string expected = absl::StrCat(all, whole.Finish());
    std::string text;
    for (size_t at = 0; at < ids.size();) {
      const size_t n = std::min<size_t>(ids.size() - at, random() % 4 + 1);
      const std::string chunk = parts.Append(absl::MakeSpan(ids).subspan(at, n));
      EXPECT_EQ(FirstInvalidByte(chunk), chunk.size());
      text += chunk;
      at += n;
    }
    text += parts.Finish();
    EXPECT_EQ(text, expected) << "seed " << TestSeed() << " case " << i;
  }
}

TEST(DetokenizerTest, GivesBackWhatWasEncoded) {
  std::mt19937_64 random(TestSeed());
  for (int i = 0; i < 500; ++i) {
    const std::string text = RandomText(random, 40);
    Detokenizer detokenizer(&TestTokenizer());
    const std::string decoded =
        detokenizer.Append(*TestTokenizer().Encode(text, SpecialTokens::kAsText));
    EXPECT_EQ(absl::StrCat(decoded, detokenizer.Finish()), ToNfc(text));
  }
}

}  // namespace
}  // namespace ultraspeed::router
