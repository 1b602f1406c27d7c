// Decimal numbers between two bounds, without exponents.
#pragma once

#include <optional>

#include "common/grammar/decimal_bound.h"
#include "common/grammar/grammar.h"

namespace ultraspeed::grammar {

// The numbers from min to max that have at most limits::kJsonBoundedDigitsMax digits: few enough to
// be told from each other, and from the bounds, when they are read as doubles. nullopt: no bound.
// REQUIRES: bounds that are finite.
RuleId NumberRange(GrammarBuilder* builder, std::optional<NumberBound> min,
                   std::optional<NumberBound> max);

}  // namespace ultraspeed::grammar
