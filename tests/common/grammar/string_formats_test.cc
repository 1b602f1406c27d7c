#include "common/grammar/string_formats.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/common/grammar/grammar_testing.h"

namespace ultraspeed::grammar {
namespace {

TEST(StringFormats, TextsAreTold) {
  struct Case {
    const char* format;
    std::vector<std::string> accepted, refused;
  };
  const std::vector<Case> cases = {
      {"date",
       {"2026-11-29", "2024-02-29", "2000-02-29", "0001-01-01", "9999-12-31", "2400-02-29"},
       {"2026-02-29", "1900-02-29", "2026-13-01", "2026-00-10", "2026-04-31", "0000-01-01",
        "2026-1-1", "26-11-29", "2026-11-29T", "2026-02-30", ""}},
      {"time",
       {"00:00:00Z", "23:59:59.123456+23:59", "12:30:00-05:00"},
       {"24:00:00Z", "12:60:00Z", "12:00:60Z", "12:00:00", "12:00Z", "12:00:00.1234567Z"}},
      {"date-time",
       {"2026-11-29T15:00:00Z", "2024-02-29T00:00:00.5+01:00"},
       {"2026-11-29 15:00:00Z", "2026-11-29", "2026-02-29T00:00:00Z", "2026-11-29T15:00:00"}},
      {"duration",
       {"P1D", "PT1H", "P1Y2M3DT4H5M6S", "P2W", "PT36H", "P1M", "PT5M", "PT5S"},
       {"P", "PT", "P1", "1D", "P1DT", "P1W2D", "P1S", "PT1D", "P1Y3D"}},
      {"email",
       {"a@b.cd", "first.last+tag@mail.example.co.uk", "x_y-z@a-b.org"},
       {"a@b", "@b.cd", "a@.cd", "a@b.c", "a b@c.de", ".a@b.cd", "a.@b.cd", "a@-b.cd", "a@b-.cd"}},
      {"hostname",
       {"localhost", "a.b.example.co.uk", "x1-2.y"},
       {"", "-a", "a-", "a..b", "a.", ".a", "a_b"}},
      {"ipv4",
       {"0.0.0.0", "255.255.255.255", "10.1.20.199"},
       {"256.0.0.0", "1.2.3", "1.2.3.4.5", "01.2.3.4", "1.2.3.", ""}},
      {"ipv6",
       {"::", "::1", "1::", "2001:db8::8a2e:370:7334", "1:2:3:4:5:6:7:8",
        "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "fe80::ABCD"},
       {":", ":::", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1::2::3",
        "12345::", "g::", "1:", "1:2:3:4:5:6:7:8::", "::1:2:3:4:5:6:7:8"}},
      {"uuid",
       {"123e4567-e89b-12d3-a456-426614174000", "123E4567-E89B-12D3-A456-426614174000"},
       {"123e4567e89b12d3a456426614174000", "123e4567-e89b-12d3-a456-42661417400",
        "g23e4567-e89b-12d3-a456-426614174000"}},
  };
  for (const Case& one : cases) {
    const auto grammar =
        SchemaGrammar(absl::StrCat(R"({"type":"string","format":")", one.format, "\"}"));
    ASSERT_NE(grammar, nullptr) << one.format;
    for (const std::string& text : one.accepted) {
      EXPECT_TRUE(Accepts(grammar, absl::StrCat("\"", text, "\""))) << one.format << " " << text;
    }
    for (const std::string& text : one.refused) {
      EXPECT_FALSE(Accepts(grammar, absl::StrCat("\"", text, "\""))) << one.format << " " << text;
    }
  }
}

TEST(StringFormats, OthersConstrainNothing) {
  EXPECT_TRUE(Accepts(SchemaGrammar(R"({"type":"string","format":"color"})"), R"("any")"));
  EXPECT_TRUE(Accepts(SchemaGrammar(R"({"type":"integer","format":"date"})"), "3"));
  EXPECT_TRUE(Accepts(SchemaGrammar(R"({"format":"date"})"), "3"));
  // A pattern says more than a format.
  EXPECT_TRUE(Accepts(SchemaGrammar(R"({"pattern":"^a$","format":"date"})"), R"("a")"));
}

TEST(StringFormats, AllInOneSchema) {
  std::string properties;
  for (int i = 0; i < 20; ++i) {
    for (const char* format :
         {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}) {
      absl::StrAppend(&properties, properties.empty() ? "" : ",", "\"", format, i,
                      R"(":{"type":"string","format":")", format, "\"}");
    }
  }
  EXPECT_NE(SchemaGrammar(absl::StrCat(R"({"type":"object","properties":{)", properties, "}}")),
            nullptr);
}

}  // namespace
}  // namespace ultraspeed::grammar
