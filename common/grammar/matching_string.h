// JSON's strings, quotes included, whose text an automaton accepts, and such texts without quotes.
// Each text has one spelling: in JSON, of the escapes only \" \\ \b \f \n \r \t, so that other
// control characters cannot be written.
#pragma once

#include "absl/strings/string_view.h"
#include "common/grammar/grammar.h"
#include "common/grammar/text_automaton.h"

namespace ultraspeed::grammar {

RuleId MatchingString(GrammarBuilder* builder, const TextAutomaton& automaton);

// The same texts as they are, up to and with a mark; without those that hold the mark's first byte,
// or begin with one of the bytes `not_first`. REQUIRES: mark is not empty; both are ASCII.
RuleId MatchingTextUntil(GrammarBuilder* builder, const TextAutomaton& automaton,
                         absl::string_view mark, absl::string_view not_first);

}  // namespace ultraspeed::grammar
