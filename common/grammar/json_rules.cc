#include "common/grammar/json_rules.h"

#include <algorithm>

#include "common/grammar/combinators.h"
#include "common/grammar/integer_range.h"
#include "common/grammar/json_literal.h"
#include "common/grammar/json_strings.h"
#include "common/limits.h"

namespace ultraspeed::grammar {

// All of them hold any value, so it has its number before they are made.
RuleId JsonRules::Value() {
  if (value_) return *value_;
  value_ = builder_->AddRule();
  object_ = Object({.properties = {}, .other_values = *value_});
  array_ = Array({.first_items = {}, .other_items = *value_, .num_items = {}});
  const NodeId end = builder_->AddNode(*value_);
  builder_->SetFinal(end);
  for (const RuleId rule : {*object_, *array_, String(), Number(), Boolean(), Null()}) {
    builder_->AddCall(builder_->Entry(*value_), rule, end);
  }
  return *value_;
}

RuleId JsonRules::AnyObject() {
  Value();
  return *object_;
}

RuleId JsonRules::AnyArray() {
  Value();
  return *array_;
}

RuleId JsonRules::Null() {
  if (!null_) null_ = Literal(builder_, "null");
  return *null_;
}

RuleId JsonRules::Boolean() {
  if (!boolean_) boolean_ = OneOf(builder_, {"false", "true"});
  return *boolean_;
}

RuleId JsonRules::Digits(uint32_t min, uint32_t max) {
  const auto [found, is_new] = digits_.try_emplace({min, max}, kNoRule);
  if (is_new) found->second = Repeat(builder_, ByteRange(builder_, '0', '9'), {min, max});
  return found->second;
}

RuleId JsonRules::Integer() {
  if (integer_) return *integer_;
  const RuleId rule = builder_->AddRule();
  const NodeId digits = builder_->AddNode(rule);
  const NodeId end = builder_->AddNode(rule);
  builder_->AddBytes(builder_->Entry(rule), '-', '-', digits);
  builder_->AddEmpty(builder_->Entry(rule), digits);
  builder_->AddBytes(digits, '0', '0', end);
  const NodeId more_digits = builder_->AddNode(rule);
  builder_->AddBytes(digits, '1', '9', more_digits);
  builder_->AddCall(more_digits, Digits(0, limits::kJsonIntegerDigitsMax - 1), end);
  builder_->SetFinal(end);
  integer_ = rule;
  return rule;
}

RuleId JsonRules::Integer(int64_t min, int64_t max) { return IntegerRange(builder_, min, max); }

RuleId JsonRules::Number() {
  if (number_) return *number_;
  const RuleId rule = builder_->AddRule();
  const NodeId integer_end = builder_->AddCall(builder_->Entry(rule), Integer());
  const NodeId fraction_end = builder_->AddCall(builder_->AddLiteral(integer_end, "."),
                                                Digits(1, limits::kJsonFractionDigitsMax));
  builder_->AddEmpty(integer_end, fraction_end);
  const NodeId exponent = builder_->AddNode(rule);
  for (const uint8_t e : {'E', 'e'}) builder_->AddBytes(fraction_end, e, e, exponent);
  const NodeId exponent_digits = builder_->AddNode(rule);
  for (const uint8_t sign : {'+', '-'}) builder_->AddBytes(exponent, sign, sign, exponent_digits);
  builder_->AddEmpty(exponent, exponent_digits);
  const NodeId end = builder_->AddCall(exponent_digits, Digits(1, limits::kJsonExponentDigitsMax));
  builder_->AddEmpty(fraction_end, end);
  builder_->SetFinal(end);
  number_ = rule;
  return rule;
}

RuleId JsonRules::String(CountRange num_characters) {
  const bool is_any = num_characters.min == 0 && num_characters.max == CountRange::kUnbounded;
  if (!is_any) return JsonString(builder_, num_characters);
  if (!string_) string_ = JsonString(builder_, num_characters);
  return *string_;
}

RuleId JsonRules::Whitespace() {
  if (whitespace_) return *whitespace_;
  const RuleId rule = builder_->AddRule({0, limits::kJsonIndentMax});
  const NodeId entry = builder_->Entry(rule);
  const NodeId indent = builder_->AddNode(rule);
  const NodeId end = builder_->AddNode(rule);
  builder_->AddBytes(entry, ' ', ' ', end);
  builder_->AddBytes(entry, '\n', '\n', indent);
  for (const uint8_t blank : {'\t', ' '}) {
    builder_->AddBytes(indent, blank, blank, indent, Guard::kCount);
  }
  for (const NodeId node : {entry, indent, end}) builder_->SetFinal(node);
  whitespace_ = rule;
  return rule;
}

// The count is of other_items only: how many of first_items there are is known at every node.
RuleId JsonRules::Array(const ArraySpec& spec) {
  const uint32_t max = spec.num_items.max, min = spec.num_items.min;
  const auto num_first = static_cast<uint32_t>(std::min<size_t>(spec.first_items.size(), max));
  const bool has_others = spec.other_items != kNoRule && max > num_first;
  CountRange others = {min - std::min(min, num_first), CountRange::kUnbounded};
  if (max != CountRange::kUnbounded) others.max = max - num_first;
  const RuleId rule = builder_->AddRule(others);
  const RuleId space = Whitespace();
  const NodeId end = builder_->AddNode(rule);
  builder_->SetFinal(end);

  NodeId item = builder_->AddCall(builder_->AddLiteral(builder_->Entry(rule), "["), space);
  NodeId after = item;  // where the array may end
  for (uint32_t i = 0; i < num_first; ++i) {
    if (i >= min) builder_->AddBytes(after, ']', ']', end);
    after = builder_->AddCall(builder_->AddCall(item, spec.first_items[i]), space);
    if (i + 1 == num_first) break;
    item = builder_->AddCall(builder_->AddLiteral(after, ","), space);
  }
  if (!has_others) {
    if (num_first >= min) builder_->AddBytes(after, ']', ']', end);
    return rule;
  }
  builder_->AddBytes(after, ']', ']', end, Guard::kEnough);
  const NodeId loop_item = builder_->AddNode(rule);
  const NodeId loop_item_end = builder_->AddNode(rule);
  const NodeId loop_after = builder_->AddCall(loop_item_end, space);
  const NodeId comma = builder_->AddNode(rule);
  builder_->AddCall(loop_item, spec.other_items, loop_item_end, Guard::kCount);
  builder_->AddBytes(loop_after, ']', ']', end, Guard::kEnough);
  builder_->AddBytes(loop_after, ',', ',', comma, Guard::kMore);
  builder_->AddCall(comma, space, loop_item);
  if (num_first == 0) {
    builder_->AddEmpty(item, loop_item);
  } else {
    builder_->AddBytes(after, ',', ',', comma);
  }
  return rule;
}

void JsonRules::AddMember(NodeId key_end, RuleId value, NodeId to) {
  const NodeId colon = builder_->AddCall(key_end, Whitespace());
  const NodeId value_begin = builder_->AddCall(builder_->AddLiteral(colon, ":"), Whitespace());
  builder_->AddCall(value_begin, value, to);
}

RuleId JsonRules::OtherName(absl::Span<const Property> properties) {
  if (properties.empty()) return String();
  std::vector<std::string> names;
  for (const Property& property : properties) names.push_back(property.name);
  return JsonStringExcept(builder_, names);
}

// keys[i]: a name must come, of property i or one behind it. afters[i]: a member has ended, and the
// next may be property i. The last of both: only other names may come.
RuleId JsonRules::Object(const ObjectSpec& spec) {
  const size_t num = spec.properties.size();
  const RuleId rule = builder_->AddRule();
  const RuleId space = Whitespace();
  const NodeId end = builder_->AddNode(rule);
  builder_->SetFinal(end);
  std::vector<NodeId> keys, afters;
  for (size_t i = 0; i <= num; ++i) {
    keys.push_back(builder_->AddNode(rule));
    afters.push_back(builder_->AddNode(rule));
  }
  size_t num_until_required = num;  // properties before the last required one, and that one
  while (num_until_required > 0 && !spec.properties[num_until_required - 1].is_required) {
    --num_until_required;
  }

  const NodeId begin = builder_->AddCall(builder_->AddLiteral(builder_->Entry(rule), "{"), space);
  if (num_until_required == 0) builder_->AddBytes(begin, '}', '}', end);
  builder_->AddEmpty(begin, keys[0]);
  for (size_t i = 0; i <= num; ++i) {
    const NodeId comma = builder_->AddCall(afters[i], space);
    if (i >= num_until_required) builder_->AddBytes(comma, '}', '}', end);
    builder_->AddCall(builder_->AddLiteral(comma, ","), space, keys[i]);
    if (i == num) break;
    const Property& property = spec.properties[i];
    AddMember(builder_->AddLiteral(keys[i], QuotedJson(property.name)), property.value,
              afters[i + 1]);
    if (!property.is_required) builder_->AddEmpty(keys[i], keys[i + 1]);
  }
  if (spec.other_values != kNoRule) {
    AddMember(builder_->AddCall(keys[num], OtherName(spec.properties)), spec.other_values,
              afters[num]);
  }
  return rule;
}

}  // namespace ultraspeed::grammar
