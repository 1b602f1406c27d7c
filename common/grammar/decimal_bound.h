// A bound of decimal numbers as its digits, which numbers are compared with while they are written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace ultraspeed::grammar {

struct NumberBound {
  double number = 0;
  bool is_inclusive = true;
};

// Of magnitudes, where not said otherwise.
struct DecimalBound {
  std::string integer;   // no leading zeros but of "0"
  std::string fraction;  // no trailing zeros
  bool is_inclusive = true;
  bool is_negative = false;  // of numbers with signs
};
DecimalBound BoundOf(int64_t number);  // inclusive, with its sign
DecimalBound BoundOf(const NumberBound& bound);
// The magnitude in the fewest digits that are read as it. REQUIRES: it is finite.
DecimalBound MagnitudeOf(const NumberBound& bound);

// Whether a fraction may end behind `num_read` digits, which are those of low and of high if these
// are not null.
bool FractionMayEnd(size_t num_read, const DecimalBound* low, const DecimalBound* high);
// Digit `idx` of the bound's fraction; `otherwise` without a bound.
char FractionDigit(const DecimalBound* bound, size_t idx, char otherwise);

}  // namespace ultraspeed::grammar
