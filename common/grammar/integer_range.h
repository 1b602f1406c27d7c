// The decimal integers from min to max, without leading zeros or "-0".
#pragma once

#include <cstdint>

#include "common/grammar/grammar.h"

namespace ultraspeed::grammar {

// REQUIRES: min <= max.
RuleId IntegerRange(GrammarBuilder* builder, int64_t min, int64_t max);

}  // namespace ultraspeed::grammar
