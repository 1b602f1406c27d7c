// Grammars out of smaller ones. Every function adds a rule to the builder; rules may be used any
// number of times. JSON values are in json_rules.h and json_schema.h.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/grammar/grammar.h"

namespace ultraspeed::grammar {

RuleId Literal(GrammarBuilder* builder, absl::string_view text);
// One of the texts. They share what they begin with, so many of them cost no time.
RuleId OneOf(GrammarBuilder* builder, absl::Span<const std::string> texts);
// One byte of a range.
RuleId ByteRange(GrammarBuilder* builder, uint8_t first, uint8_t last);

RuleId Sequence(GrammarBuilder* builder, absl::Span<const RuleId> parts);
RuleId Choice(GrammarBuilder* builder, absl::Span<const RuleId> alternatives);
// `part` as often as `count` says. REQUIRES: count.min <= count.max.
RuleId Repeat(GrammarBuilder* builder, RuleId part, CountRange count);

// UTF-8 text of so many characters that begins with none of the bytes `not_first`, up to and with
// the first `mark`. REQUIRES: mark is UTF-8, not empty, and does not end as it begins; not_first is
// ASCII and has not the mark's first byte.
RuleId TextUntil(GrammarBuilder* builder, absl::string_view mark, CountRange num_characters = {},
                 absl::string_view not_first = {});

}  // namespace ultraspeed::grammar
