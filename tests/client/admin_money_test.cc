#include "client/admin_money.h"

#include <gtest/gtest.h>

#include "client/admin_table.h"

namespace ultraspeed::client {
namespace {

TEST(ParseDollars, IsExactToTheNanoDollar) {
  EXPECT_EQ(*ParseDollars("x", "0.0036"), 3'600'000);
  EXPECT_EQ(*ParseDollars("x", "12"), 12'000'000'000);
  EXPECT_EQ(*ParseDollars("x", "12."), 12'000'000'000);
  EXPECT_EQ(*ParseDollars("x", "0.000000001"), 1);
  EXPECT_EQ(*ParseDollars("x", "999999999.999999999"), 999'999'999'999'999'999);
}

TEST(ParseDollars, OtherTextsNameFlagAndValue) {
  for (const char* text : {"", ".5", "-1", "+1", "1e3", "1.0000000001", "1.2.3", "1 ", "$1",
                           "1000000001", "99999999999999999999"}) {
    const absl::Status status = ParseDollars("input", text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_EQ(status.message().find(std::string("--input=") + text + ":"), 0u) << status;
  }
}

TEST(DollarsText, ShowsCentsAndNoMoreThanNeeded) {
  EXPECT_EQ(DollarsText(1'300'000'000), "$1.30");
  EXPECT_EQ(DollarsText(0), "$0.00");
  EXPECT_EQ(DollarsText(3'600'000), "$0.0036");
  EXPECT_EQ(DollarsText(1), "$0.000000001");
}

TEST(Table, LinesNumbersUpOnTheRight) {
  Table table({"name", "count"});
  table.Add({"a", "7"});
  table.Add({"longer", "1234567"});
  EXPECT_EQ(table.Text(),
            "name      count\n"
            "a             7\n"
            "longer  1234567\n");
}

}  // namespace
}  // namespace ultraspeed::client
