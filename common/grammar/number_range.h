// Decimal numbers between two bounds, without exponents.
#pragma once

#include <optional>

#include "common/grammar/grammar.h"

namespace ultraspeed::grammar {

struct NumberBound {
  double number = 0;
  bool is_inclusive = true;
};

// The numbers from min to max that have at most limits::kJsonBoundedDigitsMax digits: few enough to
// be told from each other, and from the bounds, when they are read as doubles. nullopt: no bound.
// REQUIRES: bounds that are finite.
RuleId NumberRange(GrammarBuilder* builder, std::optional<NumberBound> min,
                   std::optional<NumberBound> max);

}  // namespace ultraspeed::grammar
