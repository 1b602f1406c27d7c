#include "common/grammar/multiple_range.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/common/grammar/grammar_testing.h"

namespace ultraspeed::grammar {
namespace {

TEST(MultipleRange, StepsAreTheDigitsThatAreReadAsThem) {
  const auto is = [](double number, uint64_t units, int decimals) {
    const std::optional<DecimalStep> step = StepOf(number);
    ASSERT_TRUE(step) << number;
    EXPECT_EQ(step->units, units) << number;
    EXPECT_EQ(step->decimals, decimals) << number;
  };
  is(0.01, 1, 2);
  is(0.25, 25, 2);
  is(2.5, 25, 1);
  is(7, 7, 0);
  is(1e6, 1000000, 0);
  is(1e-7, 1, 7);
  EXPECT_FALSE(StepOf(1e18));  // 19 digits
  EXPECT_FALSE(StepOf(0.0));
  EXPECT_FALSE(StepOf(-2.0));
  EXPECT_FALSE(StepOf(int64_t{0}));
  EXPECT_EQ(StepOf(int64_t{100000000000000001})->units, 100000000000000001u);
}

TEST(MultipleRange, Multiples) {
  struct Case {
    const char* schema;
    std::vector<std::string> accepted, refused;
  };
  const std::vector<Case> cases = {
      {R"({"type":"number","multipleOf":0.01})",
       {"0", "0.0", "0.00", "1", "1.5", "1.50", "-0.01", "9999999999999.99", "-3"},
       {"-0", "-0.00", "0.001", "1.005", "01", "1.", "1e2", "10000000000000", ""}},
      {R"({"type":"number","multipleOf":0.5,"minimum":-1,"exclusiveMaximum":2})",
       {"-1", "-1.0", "-0.5", "0", "0.5", "1", "1.5", "1.0"},
       {"-1.5", "2", "2.0", "0.25", "0.50", "-0.0", "1.2"}},
      {R"({"type":"number","multipleOf":2.5})",
       {"0", "2.5", "5", "5.0", "7.5", "10", "-12.5"},
       {"1", "2", "2.0", "3.5", "6"}},
      {R"({"type":"number","multipleOf":0.25,"minimum":0.3,"maximum":1.1})",
       {"0.5", "0.50", "0.75", "1", "1.0", "1.00"},
       {"0.25", "0.3", "0", "1.25", "1.1"}},
      {R"({"type":"integer","multipleOf":7})",
       {"0", "7", "14", "-7", "-700", "999999999999999999"},
       {"1", "8", "-0", "07", "7.0", "10", "999999999999999998"}},
      {R"({"type":"integer","multipleOf":1000000})",
       {"0", "1000000", "12000000", "-3000000"},
       {"1", "100000", "1000001", "500000", "0000000"}},
      {R"({"type":"integer","multipleOf":1e17})",
       {"0", "100000000000000000", "900000000000000000"},
       {"10000000000000000", "110000000000000000"}},
      {R"({"type":"integer","multipleOf":360,"minimum":0,"maximum":1080})",
       {"0", "360", "720", "1080"},
       {"1440", "-360", "36", "90"}},
      {R"({"type":"integer","multipleOf":0.5})", {"0", "1", "2", "-13"}, {"0.5", "1.0"}},
      {R"({"type":"integer","multipleOf":1.5})", {"0", "3", "6", "-9"}, {"1", "2", "1.5", "4"}},
      {R"({"type":"integer","multipleOf":2,"minimum":9007199254740993,"maximum":9007199254740997})",
       {"9007199254740994", "9007199254740996"},
       {"9007199254740992", "9007199254740993", "9007199254740998"}},
      // 10^17 + 1 and 5^23, which no doubles are.
      {R"({"type":"integer","multipleOf":100000000000000001})",
       {"0", "100000000000000001", "900000000000000009"},
       {"100000000000000000", "200000000000000000"}},
      {R"({"type":"integer","multipleOf":11920928955078125})",
       {"0", "11920928955078125", "-23841857910156250"},
       {"11920928955078124", "11920928955078126"}},
      {R"({"multipleOf":5,"maximum":-7})", {"-10", "-15", "-100"}, {"-5", "-7", "0", "5"}},
      {R"({"type":["integer","null"],"multipleOf":2})", {"null", "2"}, {"3"}},
  };
  for (const Case& one : cases) {
    const auto grammar = SchemaGrammar(one.schema);
    ASSERT_NE(grammar, nullptr) << one.schema;
    for (const std::string& text : one.accepted)
      EXPECT_TRUE(Accepts(grammar, text)) << one.schema << " " << text;
    for (const std::string& text : one.refused)
      EXPECT_FALSE(Accepts(grammar, text)) << one.schema << " " << text;
  }
}

TEST(MultipleRange, WhatNothingSatisfiesIsRefused) {
  EXPECT_EQ(ErrorOf(R"({"type":"integer","multipleOf":7,"minimum":1,"maximum":6})"),
            "schema: nothing satisfies it");
  constexpr const char* kNoStep =
      R"(schema: "multipleOf" is no positive number of at most 18 digits and 14 decimals)";
  for (const char* step : {"0", "-1", "\"2\"", "1e19", "1e-15", "1e300", "5e-324", "null"}) {
    EXPECT_EQ(ErrorOf(absl::StrCat(R"({"type":"number","multipleOf":)", step, "}")), kNoStep)
        << step;
  }
  EXPECT_EQ(ErrorOf(R"({"type":"integer","multipleOf":999983})"),
            R"(schema: "multipleOf" takes too many states to follow)");
}

// Against arithmetic on whole numbers of the step's last decimal.
TEST(MultipleRange, AsWholeNumbersDivide) {
  std::mt19937 random(3);
  int num_accepted = 0;
  for (int i = 0; i < 200; ++i) {
    const int decimals = static_cast<int>(random() % 4);
    const auto scale = static_cast<int64_t>(std::pow(10.0, decimals));
    auto units = static_cast<int64_t>(random() % 400 + 1);
    if (decimals > 0 && units % 10 == 0) ++units;  // it has so many decimals
    int64_t min = static_cast<int64_t>(random() % 20000) - 10000, max = min + random() % 9000;
    const auto text_of = [&](int64_t number) {
      return absl::StrFormat("%.*f", decimals,
                             static_cast<double>(number) / static_cast<double>(scale));
    };
    const auto grammar = SchemaGrammar(
        absl::StrFormat(R"({"anyOf":[{"const":"x"},)"
                        R"({"type":"number","multipleOf":%s,"minimum":%s,"maximum":%s}]})",
                        text_of(units), text_of(min), text_of(max)));
    ASSERT_NE(grammar, nullptr);
    for (int j = 0; j < 80; ++j) {
      int64_t number = min - 20 + static_cast<int64_t>(random() % (max - min + 40));
      if (j % 2 == 0) number -= number % units;
      const bool expected = number >= min && number <= max && number % units == 0;
      const std::string text = text_of(number);
      if (text.starts_with("-0") && number == 0) continue;
      num_accepted += expected;
      EXPECT_EQ(Accepts(grammar, text), expected)
          << units << "e-" << decimals << " " << min << " " << max << " " << text;
    }
  }
  EXPECT_GT(num_accepted, 2000);
}

}  // namespace
}  // namespace ultraspeed::grammar
