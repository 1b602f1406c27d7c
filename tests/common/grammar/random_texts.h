// Texts that a model without any sense would write under the masks, and schemas for them.
#pragma once

#include <random>
#include <string>

#include "absl/types/span.h"
#include "common/grammar/constraint.h"
#include "tests/common/grammar/test_vocabulary.h"

namespace ultraspeed::grammar {

// So many random tokens, then those that lead to the end soonest as a rule: the first of `closers`
// that may come, else what closes something. Empty if it does not end. Of the bundled vocabulary.
std::string RandomText(Constraint* constraint, const Vocabulary& vocabulary, int num_random_tokens,
                       std::mt19937* random, absl::Span<const std::string> closers = {});

// Of at most `depth` levels, with references to #/$defs/x and #/$defs/y.
std::string RandomSchema(int depth, std::mt19937* random);

}  // namespace ultraspeed::grammar
