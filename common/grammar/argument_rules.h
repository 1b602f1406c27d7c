// The rules of arguments as a model writes them into its calls, up to and with the mark that ends
// them: strings as they are, other values as JSON, and Python's constants too, as the template
// writes those into prompts. Each is read as the value that it stands for (argument_types.h):
//   * No string holds the mark, and none that has to match a pattern its first character.
//   * Beside types of which a schema allows some values only, strings do not begin as JSON of
//     these types does, nor with white space.
//   * Of the strings of an `enum`, those that would be read as something else are left out.
// None of it has white space around.
#pragma once

#include <boost/json/fwd.hpp>
#include <map>
#include <string>
#include <tuple>

#include "absl/strings/string_view.h"
#include "common/grammar/argument_types.h"
#include "common/grammar/grammar.h"
#include "common/grammar/text_automaton.h"

namespace ultraspeed::grammar {

// Thread contract: one thread at a time.
class ArgumentRules {
 public:
  explicit ArgumentRules(GrammarBuilder* builder) : builder_(builder) {}

  RuleId String(CountRange num_characters, const ArgumentTypes& types);
  RuleId String(const TextAutomaton& texts, const ArgumentTypes& types);
  RuleId Boolean();
  RuleId Null();
  // Any of the values.
  RuleId Enum(const boost::json::array& values, const ArgumentTypes& types);
  // A value as JSON, never a string.
  RuleId Json(RuleId value);

 private:
  GrammarBuilder* const builder_;
  // By bounds and closed types.
  std::map<std::tuple<uint32_t, uint32_t, JsonTypes>, RuleId> strings_;
};

}  // namespace ultraspeed::grammar
