#include "common/grammar/number_range.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/common/grammar/grammar_testing.h"

namespace ultraspeed::grammar {
namespace {

std::shared_ptr<const Grammar> Numbers(absl::string_view keywords) {
  return SchemaGrammar(absl::StrCat(R"({"type":"number",)", keywords, "}"));
}

TEST(NumberRange, Bounds) {
  struct Case {
    const char* keywords;
    std::vector<std::string> accepted, refused;
  };
  const std::vector<Case> cases = {
      {R"("minimum":0,"maximum":1)",
       {"0", "1", "0.5", "0.0", "1.0", "1.000", "0.99999999999999", "0.00000000000001"},
       {"-0", "-0.1", "1.1", "2", "1.00000000000001", "01", "1.", ".5", "1e0", "", "-"}},
      {R"("exclusiveMinimum":0,"exclusiveMaximum":1)",
       {"0.5", "0.01", "0.99"},
       {"0", "1", "0.0", "1.0", "0.00000000000000"}},
      {R"("minimum":-1.25,"maximum":2.5)",
       {"-1.25", "-1.250", "-1.2", "-1", "-0.5", "0", "1.999", "2", "2.5", "2.50", "2.49"},
       {"-1.26", "-1.3", "-2", "2.51", "2.6", "3", "10", "-0", "-0.0"}},
      {R"("exclusiveMinimum":-1.25,"maximum":-0.5)",
       {"-1.2499", "-1", "-0.5", "-0.50"},
       {"-1.25", "-0.49", "-0.4", "0", "1", "-1.250"}},
      {R"("minimum":99.5)",
       {"99.5", "100", "99.51", "12345678901234", "999999999999999"},
       {"99.4", "99", "9.95", "1000000000000000", "-100"}},
      {R"("maximum":-3)", {"-3", "-3.0", "-4", "-1000.5"}, {"-2.9", "3", "0"}},
      {R"("minimum":0.1,"maximum":0.3)", {"0.1", "0.3", "0.2", "0.30"}, {"0.09", "0.31", "0", "1"}},
      {R"("minimum":7,"maximum":7)", {"7", "7.0"}, {"7.1", "6.9", "8"}},
      {R"("minimum":-1e300,"maximum":1e300)", {"-999999999999999", "0"}, {"1e1"}},
      {R"("minimum":9,"maximum":123)",
       {"9", "10.5", "99", "100", "122.99", "123"},
       {"8.99", "124", "123.01"}},
      {R"("minimum":5e-324,"maximum":1)", {"0.1", "1"}, {"0", "0.0"}},
  };
  for (const Case& one : cases) {
    const auto grammar = Numbers(one.keywords);
    ASSERT_NE(grammar, nullptr);
    for (const std::string& text : one.accepted) {
      EXPECT_TRUE(Accepts(grammar, text)) << one.keywords << " " << text;
    }
    for (const std::string& text : one.refused) {
      EXPECT_FALSE(Accepts(grammar, text)) << one.keywords << " " << text;
    }
  }
  // Nothing that has few enough digits: said when the schema is read.
  EXPECT_EQ(ErrorOf(R"({"type":"number","minimum":1e20})"), "schema: nothing satisfies it");
}

// Around bounds of all sizes, against the numbers as doubles.
TEST(NumberRange, AsDoublesCompare) {
  std::mt19937 random(11);
  const auto bound = [&] {
    const double magnitude = (random() % 100000) / std::pow(10.0, static_cast<int>(random() % 6));
    return random() % 2 == 0 ? magnitude : -magnitude;
  };
  int num_within = 0;
  for (int i = 0; i < 300; ++i) {
    double min = bound(), max = bound();
    if (min > max) std::swap(min, max);
    const bool min_is_inclusive = random() % 2 == 0, max_is_inclusive = random() % 2 == 0;
    if (min == max && !(min_is_inclusive && max_is_inclusive)) continue;
    const auto grammar = Numbers(absl::StrFormat(
        R"("%s":%.17g,"%s":%.17g)", min_is_inclusive ? "minimum" : "exclusiveMinimum", min,
        max_is_inclusive ? "maximum" : "exclusiveMaximum", max));
    for (int j = 0; j < 60; ++j) {
      const double near =
          j % 3 == 0 ? bound()
                     : (j % 3 == 1 ? min : max) + (static_cast<int>(random() % 5) - 2) * 1e-5;
      const std::string text = absl::StrFormat("%.*f", static_cast<int>(random() % 7), near);
      if (text.starts_with("-0") && std::strtod(text.c_str(), nullptr) == 0) continue;
      const double number = std::strtod(text.c_str(), nullptr);
      const bool expected = (number > min || (number == min && min_is_inclusive)) &&
                            (number < max || (number == max && max_is_inclusive));
      num_within += expected;
      EXPECT_EQ(Accepts(grammar, text), expected) << min << " " << max << " " << text;
    }
  }
  EXPECT_GT(num_within, 1000);
}

}  // namespace
}  // namespace ultraspeed::grammar
