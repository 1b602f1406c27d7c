#include "router/unicode.h"

#include <gtest/gtest.h>
#include <utf8proc.h>

#include <cstdlib>

#include "tests/router/test_tokenizer.h"

namespace ultraspeed::router {
namespace {

TEST(UnicodeTest, FirstInvalidByteFindsEveryKindOfFault) {
  EXPECT_EQ(FirstInvalidByte(""), 0u);
  EXPECT_EQ(FirstInvalidByte("abc\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80"), 12u);
  EXPECT_EQ(FirstInvalidByte("ab\x80"), 2u);             // continuation alone
  EXPECT_EQ(FirstInvalidByte("\xC0\xAF"), 0u);           // overlong
  EXPECT_EQ(FirstInvalidByte("a\xE0\x9F\xBF"), 1u);      // overlong
  EXPECT_EQ(FirstInvalidByte("a\xED\xA0\x80"), 1u);      // surrogate
  EXPECT_EQ(FirstInvalidByte("a\xF4\x90\x80\x80"), 1u);  // over U+10FFFF
  EXPECT_EQ(FirstInvalidByte("a\xF5\x80\x80\x80"), 1u);  // no such lead
  EXPECT_EQ(FirstInvalidByte("abc\xE4\xB8"), 3u);        // cut off
}

TEST(UnicodeTest, NfcEqualsTheLibraryOnRandomText) {
  std::mt19937_64 random(TestSeed());
  for (int i = 0; i < 3000; ++i) {
    std::string text = RandomText(random, 30);
    for (char& c : text) c = c == '\0' ? ' ' : c;  // the library's call below ends at a zero
    utf8proc_uint8_t* expected =
        utf8proc_NFC(reinterpret_cast<const utf8proc_uint8_t*>(text.c_str()));
    ASSERT_NE(expected, nullptr);
    EXPECT_EQ(ToNfc(text), reinterpret_cast<const char*>(expected))
        << "seed " << TestSeed() << " case " << i;
    if (IsQuicklyNfc(text)) {
      EXPECT_EQ(ToNfc(text), text);
    }
    std::free(expected);
  }
}

TEST(UnicodeTest, NfcOfALongRunOfMarksIsNotQuadratic) {
  std::string text = "a";
  while (text.size() < (1u << 20)) text += "\xCC\x80\xCC\x96";  // classes 230 and 220, alternating
  const std::string nfc = ToNfc(text);  // quadratic ordering would take minutes
  EXPECT_EQ(ToNfc(nfc), nfc);
}

}  // namespace
}  // namespace ultraspeed::router
