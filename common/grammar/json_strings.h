// JSON's strings as rules, quotes included. A character counts once, however it is written: a pair
// of escaped surrogates is one.
#pragma once

#include <string>

#include "absl/types/span.h"
#include "common/grammar/grammar.h"

namespace ultraspeed::grammar {

RuleId JsonString(GrammarBuilder* builder, CountRange num_characters);

// Any string but `texts` (UTF-8). Of the escapes only \" \\ \b \f \n \r \t, so that a text has one
// spelling; other control characters cannot be written.
RuleId JsonStringExcept(GrammarBuilder* builder, absl::Span<const std::string> texts);

}  // namespace ultraspeed::grammar
