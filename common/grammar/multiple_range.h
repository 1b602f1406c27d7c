// Decimal multiples of a step between two bounds, such as prices in cents.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "common/grammar/decimal_bound.h"
#include "common/grammar/grammar.h"

namespace ultraspeed::grammar {

// units * 10^-decimals, in the fewest decimals.
struct DecimalStep {
  uint64_t units = 0;
  int decimals = 0;
};
// As the decimal number that is read as `step`; nullopt: not positive, or more than
// limits::kJsonIntegerDigitsMax digits.
std::optional<DecimalStep> StepOf(double step);
std::optional<DecimalStep> StepOf(int64_t step);  // exactly

struct MultipleSpec {
  DecimalStep step;
  std::optional<DecimalBound> min, max;  // with their signs; nullopt: no bound
  int integer_digits_max = 1;
  int decimals_max = 0;  // as many as the step has, or none
};
// The multiples of the step from min to max, without exponents and without decimals beyond those of
// the step. Takes what it costs from `steps_left`; INVALID_ARGUMENT if that is not enough.
absl::StatusOr<RuleId> MultipleRange(GrammarBuilder* builder, const MultipleSpec& spec,
                                     int* steps_left);

}  // namespace ultraspeed::grammar
