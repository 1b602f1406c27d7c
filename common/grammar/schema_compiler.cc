#include "common/grammar/schema_compiler.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/grammar/combinators.h"
#include "common/grammar/json_literal.h"
#include "common/grammar/matching_string.h"
#include "common/grammar/number_range.h"
#include "common/grammar/schema_keywords.h"
#include "common/grammar/text_automaton.h"
#include "common/grammar/tool_calls.h"
#include "common/status_macros.h"

namespace ultraspeed::grammar {
namespace {

namespace json = boost::json;

// Keywords that leave nothing for others to say.
constexpr absl::string_view kWholeKeywords[] = {"$ref", "enum", "const", "anyOf", "oneOf", "allOf"};

bool IsNull(const json::value& schema) {
  const json::value* type = schema.is_object() ? schema.get_object().if_contains("type") : nullptr;
  return type != nullptr && *type == "null";
}

int64_t IntegerMax() {
  int64_t power = 1;
  for (int i = 0; i < limits::kJsonIntegerDigitsMax; ++i) power *= 10;
  return power - 1;
}

}  // namespace

RuleId SchemaCompiler::RuleOf(const json::value* schema, std::string step,
                              const Spelling& spelling) {
  return RuleOf(schema, std::move(step), spelling, current_);
}

RuleId SchemaCompiler::RuleOf(const json::value* schema, std::string step, const Spelling& spelling,
                              size_t parent) {
  const std::tuple key(schema, spelling ? spelling->types : -1, spelling ? spelling->open : -1);
  const auto [found, is_new] = rule_of_.try_emplace(key, kNoRule);
  if (is_new) {
    found->second = builder_->AddRule();
    pending_.push_back({schema, spelling, found->second, std::move(step), parent});
  }
  return found->second;
}

std::string SchemaCompiler::PathOf(size_t pending) const {
  std::vector<absl::string_view> steps;
  for (; pending_[pending].parent != pending; pending = pending_[pending].parent) {
    steps.push_back(pending_[pending].step);
  }
  std::reverse(steps.begin(), steps.end());
  return absl::StrCat(name_, absl::StrJoin(steps, ""));
}

absl::StatusOr<RuleId> SchemaCompiler::Compile() {
  const RuleId root = RuleOf(root_, "");
  RETURN_IF_ERROR(CompilePending());
  return root;
}

absl::Status SchemaCompiler::CompilePending() {
  for (; current_ < pending_.size(); ++current_) {
    const Pending pending = pending_[current_];
    ASSIGN_OR_RETURN(const RuleId values,
                     CompileOne(*pending.schema, PathOf(current_), pending.spelling));
    builder_->SetFinal(builder_->AddCall(builder_->Entry(pending.rule), values));
  }
  return absl::OkStatus();
}

// Those that are not required may be left out; the order is always the same, since a model that may
// write them in any order would have to be followed through all sets of them.
absl::StatusOr<RuleId> SchemaCompiler::CompileParameters() {
  const Object* keywords = root_->if_object();
  if (keywords == nullptr) return SchemaError(name_, "is no object");
  for (const absl::string_view keyword : kWholeKeywords) {
    if (!keywords->contains({keyword.data(), keyword.size()})) continue;
    return SchemaError(
        name_, absl::StrCat("\"", keyword, "\" is not supported of a tool's parameters together"));
  }
  RETURN_IF_ERROR(CheckKeywords(*keywords, "", name_));
  const json::value* type = keywords->if_contains("type");
  if (type != nullptr && *type != "object") return SchemaError(name_, "\"type\" is not \"object\"");
  const json::value* others = keywords->if_contains("additionalProperties");
  if (others != nullptr && !others->is_bool()) {
    return SchemaError(
        name_,
        "\"additionalProperties\" of a tool's parameters is supported if true or false only");
  }
  ASSIGN_OR_RETURN(const std::vector<Property> properties, PropertiesOf(*keywords, name_));
  const ArgumentTypesByName types = ArgumentTypesOf(*root_);
  const RuleId root = builder_->AddRule();
  pending_.push_back({root_, {}, root, "", 0});  // errors begin there
  NodeId node = builder_->Entry(root);
  for (const Property& property : properties) {
    if (property.schema == nullptr) {
      return SchemaError(name_, absl::StrCat("\"required\" names ", QuotedJson(property.name),
                                             ", which \"properties\" has not"));
    }
    const std::string step = absl::StrCat(".properties.", property.name);
    if (absl::StrContains(property.name, ">"))
      return SchemaError(name_ + step, "\">\" in a parameter's name is not supported");
    const NodeId value =
        builder_->AddLiteral(node, absl::StrCat(kParameterBegin, property.name, ">"));
    const RuleId rule = RuleOf(property.schema, step, types.at(property.name));
    const NodeId next = builder_->AddLiteral(builder_->AddCall(value, rule), "\n");
    if (!property.is_required) builder_->AddEmpty(node, next);
    node = next;
  }
  builder_->SetFinal(node);
  ++current_;
  RETURN_IF_ERROR(CompilePending());
  return root;
}

RuleId SchemaCompiler::AnyValue(const Spelling& spelling) {
  return spelling ? arguments_.String(CountRange(), *spelling) : rules_.Value();
}

absl::StatusOr<RuleId> SchemaCompiler::CompileOne(const json::value& value, const std::string& path,
                                                  const Spelling& spelling) {
  if (const bool* anything = value.if_bool()) {
    return *anything ? AnyValue(spelling) : Choice(builder_, {});
  }
  if (!value.is_object()) return SchemaError(path, "is neither an object nor true or false");
  const Schema schema = {value.get_object(), path, spelling};
  ASSIGN_OR_RETURN(const std::optional<RuleId> whole, CompileWhole(schema));
  if (whole) return *whole;
  ASSIGN_OR_RETURN(const std::vector<std::string> types, TypesOf(schema.keywords, path));
  if (types.empty()) return AnyValue(spelling);
  std::vector<RuleId> alternatives;
  for (const std::string& type : types) {
    ASSIGN_OR_RETURN(const RuleId values,
                     spelling ? CompileArgument(schema, type) : CompileType(schema, type));
    alternatives.push_back(values);
  }
  return alternatives.size() == 1 ? alternatives[0] : Choice(builder_, alternatives);
}

absl::StatusOr<std::optional<RuleId>> SchemaCompiler::CompileWhole(const Schema& schema) {
  const auto* const keyword = std::find_if(
      std::begin(kWholeKeywords), std::end(kWholeKeywords), [&](absl::string_view name) {
        return schema.keywords.contains({name.data(), name.size()});
      });
  if (keyword == std::end(kWholeKeywords)) {
    RETURN_IF_ERROR(CheckKeywords(schema.keywords, "", schema.path));
    return std::nullopt;
  }
  RETURN_IF_ERROR(CheckKeywords(schema.keywords, *keyword, schema.path));
  if (*keyword == "$ref") return CompileReference(schema);
  if (*keyword == "enum" || *keyword == "const") return CompileEnum(schema);
  return CompileAlternatives(schema, *keyword);
}

absl::StatusOr<RuleId> SchemaCompiler::CompileReference(const Schema& schema) {
  const json::string* reference = schema.keywords.at("$ref").if_string();
  if (reference == nullptr || !absl::StartsWith({reference->data(), reference->size()}, "#")) {
    return SchemaError(schema.path, "\"$ref\" is no place inside of the schema");
  }
  const absl::string_view pointer =
      absl::string_view(reference->data(), reference->size()).substr(1);
  boost::system::error_code error;
  const json::value* target = root_->find_pointer({pointer.data(), pointer.size()}, error);
  if (target == nullptr) {
    return SchemaError(schema.path, absl::StrCat("\"$ref\" names ", JsonLiteral(*reference),
                                                 ", which the schema does not have"));
  }
  return RuleOf(target, absl::StrReplaceAll(pointer, {{"/", "."}}), schema.spelling, 0);
}

absl::StatusOr<RuleId> SchemaCompiler::CompileEnum(const Schema& schema) {
  ASSIGN_OR_RETURN(const std::vector<std::string> types, TypesOf(schema.keywords, schema.path));
  const json::value* one = schema.keywords.if_contains("const");
  const absl::string_view keyword = one != nullptr ? "const" : "enum";
  if (one == nullptr && !schema.keywords.at("enum").is_array()) {
    return SchemaError(schema.path, "\"enum\" is no list");
  }
  const json::array values =
      one != nullptr ? json::array{*one} : schema.keywords.at("enum").get_array();
  if (values.size() > limits::kSchemaEnumValuesMax) {
    return SchemaError(schema.path,
                       absl::StrCat("\"enum\" has ", values.size(), " values; at most ",
                                    limits::kSchemaEnumValuesMax, " are supported"));
  }
  json::array allowed;
  for (const json::value& value : values) {
    const bool fits = types.empty() || std::any_of(types.begin(), types.end(), [&](auto& type) {
                        return IsOfType(value, type);
                      });
    if (fits) allowed.push_back(value);
  }
  if (allowed.empty()) {
    return SchemaError(schema.path, absl::StrCat("\"", keyword, "\" has no value that is allowed"));
  }
  if (schema.spelling) return arguments_.Enum(allowed, *schema.spelling);
  std::vector<std::string> texts;
  for (const json::value& value : allowed) texts.push_back(JsonLiteral(value));
  return OneOf(builder_, texts);
}

absl::StatusOr<RuleId> SchemaCompiler::CompileAlternatives(const Schema& schema,
                                                           absl::string_view keyword) {
  const json::array* alternatives = schema.keywords.at({keyword.data(), keyword.size()}).if_array();
  if (alternatives == nullptr || alternatives->empty()) {
    return SchemaError(schema.path, absl::StrCat("\"", keyword, "\" is no list of schemas"));
  }
  if (keyword == "allOf" && alternatives->size() > 1) {
    return SchemaError(schema.path, "\"allOf\" of more than one schema is not supported");
  }
  // Those beyond the first, as that is what makes readings of a text multiply.
  const auto num_nulls = std::count_if(alternatives->begin(), alternatives->end(), IsNull);
  num_alternatives_ += std::max<int>(0, static_cast<int>(alternatives->size() - num_nulls) - 1);
  if (num_alternatives_ > limits::kSchemaAlternativesMax) {
    return SchemaError(name_, absl::StrCat("has more than ", limits::kSchemaAlternativesMax,
                                           " alternatives in anyOf and oneOf"));
  }
  std::vector<RuleId> rules;
  for (size_t i = 0; i < alternatives->size(); ++i) {
    rules.push_back(
        RuleOf(&alternatives->at(i), absl::StrCat(".", keyword, "[", i, "]"), schema.spelling));
  }
  return Choice(builder_, rules);
}

absl::StatusOr<RuleId> SchemaCompiler::CompileArgument(const Schema& schema,
                                                       absl::string_view type) {
  if (type == "boolean") return arguments_.Boolean();
  if (type == "null") return arguments_.Null();
  if (type == "string") return CompileString(schema);
  ASSIGN_OR_RETURN(const RuleId values, CompileType(schema, type));
  return arguments_.Json(values);
}

absl::StatusOr<RuleId> SchemaCompiler::CompileType(const Schema& schema, absl::string_view type) {
  if (type == "object") return CompileObject(schema);
  if (type == "array") return CompileArray(schema);
  if (type == "integer") return CompileInteger(schema);
  if (type == "boolean") return rules_.Boolean();
  if (type == "null") return rules_.Null();
  if (type == "string") return CompileString(schema);
  return CompileNumber(schema);
}

absl::StatusOr<RuleId> SchemaCompiler::CompileString(const Schema& schema) {
  ASSIGN_OR_RETURN(const CountRange length,
                   CountRangeOf(schema.keywords, "minLength", "maxLength", schema.path));
  std::array<std::string, 5> key;
  constexpr const char* kKeywords[] = {"pattern", "format", "minLength", "maxLength"};
  if (schema.spelling) key[4] = absl::StrCat(schema.spelling->types, " ", schema.spelling->open);
  for (size_t i = 0; i < std::size(kKeywords); ++i) {
    const json::value* value = schema.keywords.if_contains(kKeywords[i]);
    if (value != nullptr) key[i] = JsonLiteral(*value);
  }
  if (const auto known = rule_of_strings_.find(key); known != rule_of_strings_.end())
    return known->second;
  ASSIGN_OR_RETURN(const std::optional<Pattern> pattern, PatternOf(schema.keywords, schema.path));
  if (!pattern && schema.spelling) return arguments_.String(length, *schema.spelling);
  if (!pattern) return rules_.String(length);
  const absl::StatusOr<TextAutomaton> texts = FindPattern(*pattern, length, &automaton_steps_left_);
  if (!texts.ok()) {
    const absl::string_view keyword = schema.keywords.contains("pattern") ? "pattern" : "format";
    return SchemaError(schema.path, absl::StrCat("\"", keyword, "\" ", texts.status().message()));
  }
  return rule_of_strings_[key] = schema.spelling ? arguments_.String(*texts, *schema.spelling)
                                                 : MatchingString(builder_, *texts);
}

absl::StatusOr<RuleId> SchemaCompiler::CompileNumber(const Schema& schema) {
  ASSIGN_OR_RETURN(const NumberBounds bounds, NumberBoundsOf(schema.keywords, schema.path));
  ASSIGN_OR_RETURN(const std::optional<DecimalStep> step, MultipleOf(schema.keywords, schema.path));
  if (step) {
    MultipleSpec spec = {.step = *step, .min = {}, .max = {}};
    if (bounds.min) spec.min = BoundOf(*bounds.min);
    if (bounds.max) spec.max = BoundOf(*bounds.max);
    spec.integer_digits_max = limits::kJsonBoundedDigitsMax - step->decimals;
    spec.decimals_max = step->decimals;
    return CompileMultiples(schema, spec);
  }
  if (!bounds.min && !bounds.max) return rules_.Number();
  return NumberRange(builder_, bounds.min, bounds.max);
}

absl::StatusOr<RuleId> SchemaCompiler::CompileInteger(const Schema& schema) {
  ASSIGN_OR_RETURN(const IntegerBounds bounds, IntegerBoundsOf(schema.keywords, schema.path));
  ASSIGN_OR_RETURN(const std::optional<DecimalStep> step, MultipleOf(schema.keywords, schema.path));
  if (!step && !bounds.min && !bounds.max) return rules_.Integer();
  const int64_t max = bounds.max.value_or(std::max(bounds.min.value_or(0), IntegerMax()));
  const int64_t min = bounds.min.value_or(std::min(max, -IntegerMax()));
  if (!step) return rules_.Integer(min, max);
  return CompileMultiples(schema, {.step = *step,
                                   .min = BoundOf(min),
                                   .max = BoundOf(max),
                                   .integer_digits_max = std::numeric_limits<int64_t>::digits10 + 1,
                                   .decimals_max = 0});
}

absl::StatusOr<RuleId> SchemaCompiler::CompileMultiples(const Schema& schema,
                                                        const MultipleSpec& spec) {
  const absl::StatusOr<RuleId> rule = MultipleRange(builder_, spec, &automaton_steps_left_);
  if (rule.ok()) return *rule;
  return SchemaError(schema.path, absl::StrCat("\"multipleOf\" ", rule.status().message()));
}

absl::StatusOr<RuleId> SchemaCompiler::CompileArray(const Schema& schema) {
  JsonRules::ArraySpec spec;
  ASSIGN_OR_RETURN(spec.num_items,
                   CountRangeOf(schema.keywords, "minItems", "maxItems", schema.path));
  if (const json::value* first = schema.keywords.if_contains("prefixItems")) {
    if (!first->is_array()) return SchemaError(schema.path, "\"prefixItems\" is no list");
    for (size_t i = 0; i < first->get_array().size(); ++i) {
      spec.first_items.push_back(
          RuleOf(&first->get_array()[i], absl::StrCat(".prefixItems[", i, "]")));
    }
  }
  const json::value* others = schema.keywords.if_contains("items");
  spec.other_items = others == nullptr ? rules_.Value() : RuleOf(others, ".items");
  return rules_.Array(spec);
}

absl::StatusOr<RuleId> SchemaCompiler::CompileObject(const Schema& schema) {
  JsonRules::ObjectSpec spec;
  if (const json::value* others = schema.keywords.if_contains("additionalProperties")) {
    const bool forbidden = others->is_bool() && !others->get_bool();
    if (!forbidden) {
      spec.other_values = RuleOf(others, ".additionalProperties");
    }
  } else {
    spec.other_values = rules_.Value();
  }
  ASSIGN_OR_RETURN(const std::vector<Property> properties,
                   PropertiesOf(schema.keywords, schema.path));
  for (const Property& property : properties) {
    if (property.schema == nullptr && spec.other_values == kNoRule) {
      return SchemaError(schema.path, absl::StrCat("\"required\" names ", QuotedJson(property.name),
                                                   ", which \"additionalProperties\" forbids"));
    }
    const RuleId value = property.schema == nullptr
                             ? spec.other_values
                             : RuleOf(property.schema, absl::StrCat(".properties.", property.name));
    spec.properties.push_back({property.name, value, property.is_required});
  }
  const bool is_any = spec.properties.empty() && spec.other_values == rules_.Value();
  return is_any ? rules_.AnyObject() : rules_.Object(spec);
}

absl::StatusOr<std::vector<SchemaCompiler::Property>> SchemaCompiler::PropertiesOf(
    const Object& keywords, const std::string& path) {
  std::vector<Property> all;
  absl::flat_hash_map<std::string, size_t> idx_of;
  if (const json::value* properties = keywords.if_contains("properties")) {
    if (!properties->is_object()) return SchemaError(path, "\"properties\" is no object");
    for (const auto& [key, value] : properties->get_object()) {
      idx_of[std::string(key)] = all.size();
      all.push_back({std::string(key), &value});
    }
  }
  if (const json::value* required = keywords.if_contains("required")) {
    if (!required->is_array()) return SchemaError(path, "\"required\" is no list");
    for (const json::value& item : required->get_array()) {
      if (!item.is_string()) return SchemaError(path, "\"required\" is no list of names");
      const std::string name(item.get_string());
      const auto [found, is_other] = idx_of.try_emplace(name, all.size());
      if (is_other) all.push_back({name, nullptr});
      all[found->second].is_required = true;
    }
  }
  num_properties_ += static_cast<int>(all.size());
  if (num_properties_ > limits::kSchemaPropertiesMax) {
    return SchemaError(name_,
                       absl::StrCat("has more than ", limits::kSchemaPropertiesMax, " properties"));
  }
  for (const Property& property : all) num_optional_ += !property.is_required;
  if (num_optional_ > limits::kSchemaOptionalMax) {
    return SchemaError(name_, absl::StrCat("has more than ", limits::kSchemaOptionalMax,
                                           " properties that are not required"));
  }
  return all;
}

}  // namespace ultraspeed::grammar
