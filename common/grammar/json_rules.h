// The rules of JSON's values. What is bounded, so that a model cannot go on forever without saying
// anything:
//   * White space, wherever JSON allows it inside of a value: none, one space, or one line break
//     and at most limits::kJsonIndentMax spaces and tabs. None around the whole value.
//   * Numbers: limits::kJson...DigitsMax.
//   * Nesting: limits::kGrammarStackDepthMax.
// Strings are UTF-8 without control characters; escaped surrogates come in pairs.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "common/grammar/grammar.h"

namespace ultraspeed::grammar {

// Makes rules as they are asked for; those without parameters, once. Thread contract: one thread at
// a time.
class JsonRules {
 public:
  explicit JsonRules(GrammarBuilder* builder) : builder_(builder) {}

  struct Property {
    std::string name;
    RuleId value = kNoRule;
    bool is_required = false;
  };
  struct ObjectSpec {
    std::vector<Property> properties;  // in the order in which they are written
    RuleId other_values = kNoRule;     // of other names, behind all of them; kNoRule: none
  };
  struct ArraySpec {
    std::vector<RuleId> first_items;
    RuleId other_items = kNoRule;  // behind them; kNoRule: none
    CountRange num_items;
  };

  RuleId Value();  // any
  RuleId Null();
  RuleId Boolean();
  RuleId Number();
  RuleId Integer();
  // REQUIRES: min <= max.
  RuleId Integer(int64_t min, int64_t max);
  // By the number of Unicode's code points.
  RuleId String(CountRange num_characters = {});
  RuleId Array(const ArraySpec& spec);
  RuleId Object(const ObjectSpec& spec);
  RuleId AnyArray();
  RuleId AnyObject();

 private:
  RuleId Whitespace();
  RuleId Digits(uint32_t min, uint32_t max);
  // A string that is none of `names`. Only with JSON's short escapes, so that each has one
  // spelling.
  RuleId OtherName(absl::Span<const Property> properties);
  // `"name": value` from one node to the other, white space included.
  void AddMember(NodeId key_end, RuleId value, NodeId to);

  GrammarBuilder* const builder_;
  std::optional<RuleId> value_, null_, boolean_, number_, integer_, string_, array_, object_,
      whitespace_;
  std::map<std::pair<uint32_t, uint32_t>, RuleId> digits_;
};

}  // namespace ultraspeed::grammar
