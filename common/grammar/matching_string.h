// JSON's strings, quotes included, whose text an automaton accepts. Each text has one spelling: of
// the escapes only \" \\ \b \f \n \r \t; other control characters cannot be written.
#pragma once

#include "common/grammar/grammar.h"
#include "common/grammar/text_automaton.h"

namespace ultraspeed::grammar {

RuleId MatchingString(GrammarBuilder* builder, const TextAutomaton& automaton);

}  // namespace ultraspeed::grammar
