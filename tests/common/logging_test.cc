#include "common/logging.h"

#include <gtest/gtest.h>

#include <cmath>

#include "common/limits.h"

namespace ultraspeed {
namespace {

TEST(LoggingTest, OneLineOfJson) {
  EXPECT_EQ(
      FormatLogLine("t", LogLevel::kWarning, "a.b",
                    {{"s", "x\"y\\z\n"}, {"i", -3}, {"u", uint64_t{7}}, {"d", 0.5}, {"b", true}}),
      "{\"time\":\"t\",\"level\":\"warning\",\"event\":\"a.b\",\"s\":\"x\\\"y\\\\z\\n\",\"i\":-3,"
      "\"u\":7,\"d\":0.5,\"b\":true}");
}

TEST(LoggingTest, NotANumberIsNull) {
  EXPECT_EQ(FormatLogLine("t", LogLevel::kInfo, "e", {{"d", std::nan("")}}),
            "{\"time\":\"t\",\"level\":\"info\",\"event\":\"e\",\"d\":null}");
}

TEST(LoggingTest, EscapesControlCharactersAndRepairsUtf8) {
  std::string out;
  AppendJsonEscaped(absl::string_view("\x01\t\xFF-\xC3\xA9\xF0\x9F\x98\x80\xED\xA0\x80", 13), &out);
  EXPECT_EQ(out,
            "\\u0001\\t\xEF\xBF\xBD-\xC3\xA9\xF0\x9F\x98\x80\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(LoggingTest, CutsLongValues) {
  const std::string value(10 * limits::kLogValueBytesMax, 'x');
  EXPECT_LT(FormatLogLine("t", LogLevel::kInfo, "e", {{"v", value}}).size(),
            limits::kLogValueBytesMax + 100);
}

}  // namespace
}  // namespace ultraspeed
