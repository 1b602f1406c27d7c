#include "common/grammar/decimal_bound.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "absl/strings/string_view.h"

namespace ultraspeed::grammar {

DecimalBound BoundOf(int64_t number) {
  std::string digits = std::to_string(number);
  if (number < 0) digits.erase(0, 1);
  return {.integer = digits, .fraction = "", .is_inclusive = true, .is_negative = number < 0};
}

DecimalBound BoundOf(const NumberBound& bound) {
  DecimalBound result = MagnitudeOf(bound);
  result.is_negative = bound.number < 0;
  return result;
}

DecimalBound MagnitudeOf(const NumberBound& bound) {
  std::array<char, 512> text;  // a double has at most 309 digits before or 324 behind the point
  const char* const end =
      std::to_chars(text.begin(), text.end(), std::abs(bound.number), std::chars_format::fixed).ptr;
  const absl::string_view all(text.data(), end - text.data());
  const size_t point = std::min(all.find('.'), all.size());
  std::string fraction(all.substr(std::min(point + 1, all.size())));
  return {.integer = std::string(all.substr(0, point)),
          .fraction = fraction,
          .is_inclusive = bound.is_inclusive};
}

bool FractionMayEnd(size_t num_read, const DecimalBound* low, const DecimalBound* high) {
  const bool is_low = low != nullptr && num_read >= low->fraction.size();
  const bool is_below = low != nullptr && num_read < low->fraction.size();
  const bool is_high = high != nullptr && num_read >= high->fraction.size();
  return !is_below && (!is_low || low->is_inclusive) && (!is_high || high->is_inclusive);
}

char FractionDigit(const DecimalBound* bound, size_t idx, char otherwise) {
  if (bound == nullptr) return otherwise;
  return idx < bound->fraction.size() ? bound->fraction[idx] : '0';
}

}  // namespace ultraspeed::grammar
