#include "client/admin_money.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace ultraspeed::client {
namespace {

constexpr int64_t kNanodollars = 1'000'000'000;
constexpr size_t kDecimals = 9;
constexpr int64_t kDollarsMax = 1'000'000'000;

bool IsDigits(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

absl::StatusOr<int64_t> ParseDollars(absl::string_view flag, absl::string_view text) {
  const size_t point = std::min(text.find('.'), text.size());
  const absl::string_view whole = text.substr(0, point);
  const absl::string_view fraction = point < text.size() ? text.substr(point + 1) : "";
  int64_t dollars = 0, nanodollars = 0;
  if (!IsDigits(whole) || !IsDigits(fraction) || fraction.size() > kDecimals ||
      !absl::SimpleAtoi(whole, &dollars) || dollars > kDollarsMax) {
    return absl::InvalidArgumentError(absl::StrCat("--", flag, "=", text,
                                                   ": must be dollars in 0..", kDollarsMax,
                                                   " with at most 9 digits after the point"));
  }
  if (!fraction.empty()) {
    std::string padded(fraction);
    padded.resize(kDecimals, '0');
    (void)absl::SimpleAtoi(padded, &nanodollars);  // nine digits
  }
  return dollars * kNanodollars + nanodollars;
}

std::string DollarsText(int64_t nanodollars) {
  std::string text =
      absl::StrFormat("$%d.%09d", nanodollars / kNanodollars, nanodollars % kNanodollars);
  while (text.back() == '0' && text[text.size() - 3] != '.') text.pop_back();
  return text;
}

}  // namespace ultraspeed::client
