#include "common/grammar/argument_rules.h"

#include <boost/json.hpp>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/grammar/combinators.h"
#include "common/grammar/json_literal.h"
#include "common/grammar/matching_string.h"
#include "common/grammar/tool_calls.h"

namespace ultraspeed::grammar {
namespace {

namespace json = boost::json;

// The bytes that JSON of these types, white space before it included, may begin with.
std::string FirstBytesOf(JsonTypes types) {
  std::string bytes;
  if ((types & kJsonNull) != 0) bytes += "nN";
  if ((types & kJsonBoolean) != 0) bytes += "tTfF";
  if ((types & kJsonNumber) != 0) bytes += "-0123456789";
  if ((types & kJsonArray) != 0) bytes += "[";
  if ((types & kJsonObject) != 0) bytes += "{";
  if (!bytes.empty()) bytes += " \t\n\v\f\r";
  return bytes;
}

// Those that strings must not be read as.
JsonTypes ClosedTypes(const ArgumentTypes& types) {
  return static_cast<JsonTypes>(types.types & ~types.open & ~kJsonString);
}

// All ways to write the value that are read as it.
std::vector<std::string> SpellingsOf(const json::value& value, JsonTypes types) {
  if (value.is_null()) return {"null", "None"};
  if (value == true) return {"true", "True"};
  if (value == false) return {"false", "False"};
  if (!value.is_string()) return {JsonLiteral(value)};
  const std::string text(value.get_string());
  const bool is_readable =
      !absl::StrContains(text, kParameterEnd) && !JsonOfArgument(text, types).has_value();
  return is_readable ? std::vector<std::string>{text} : std::vector<std::string>();
}

}  // namespace

RuleId ArgumentRules::String(const TextAutomaton& texts, const ArgumentTypes& types) {
  return MatchingTextUntil(builder_, texts, kParameterEnd, FirstBytesOf(ClosedTypes(types)));
}

RuleId ArgumentRules::String(CountRange num_characters, const ArgumentTypes& types) {
  const JsonTypes closed = ClosedTypes(types);
  const auto [found, is_new] =
      strings_.try_emplace({num_characters.min, num_characters.max, closed}, kNoRule);
  if (is_new)
    found->second = TextUntil(builder_, kParameterEnd, num_characters, FirstBytesOf(closed));
  return found->second;
}

RuleId ArgumentRules::Boolean() { return Enum({true, false}, {}); }

RuleId ArgumentRules::Null() { return Enum({nullptr}, {}); }

RuleId ArgumentRules::Enum(const json::array& values, const ArgumentTypes& types) {
  std::vector<std::string> texts;
  for (const json::value& value : values) {
    for (const std::string& text : SpellingsOf(value, types.types))
      texts.push_back(absl::StrCat(text, kParameterEnd));
  }
  return OneOf(builder_, texts);
}

RuleId ArgumentRules::Json(RuleId value) {
  return Sequence(builder_, {value, Literal(builder_, kParameterEnd)});
}

}  // namespace ultraspeed::grammar
