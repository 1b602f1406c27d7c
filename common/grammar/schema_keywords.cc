#include "common/grammar/schema_keywords.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/grammar/json_literal.h"
#include "common/grammar/string_formats.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace ultraspeed::grammar {
namespace {

namespace json = boost::json;

constexpr absl::string_view kTypes[] = {"object",  "array",   "string", "number",
                                        "integer", "boolean", "null"};

bool SaysNothing(absl::string_view keyword, const json::value& value) {
  static const auto* const kAnnotations = new absl::flat_hash_set<absl::string_view>{
      "title",           "description",      "default",   "examples",
      "deprecated",      "readOnly",         "writeOnly", "format",
      "contentEncoding", "$schema",          "$id",       "$comment",
      "contentSchema",   "contentMediaType", "$defs",     "definitions"};
  if (keyword == "uniqueItems" && value.is_bool()) return !value.get_bool();
  return kAnnotations->contains(keyword) || absl::StartsWith(keyword, "x-");
}

// A whole number that fits, however it is written; rounded by `round` if it is none and that is not
// null.
std::optional<int64_t> WholeNumber(const json::value& value, double (*round)(double)) {
  if (const int64_t* number = value.if_int64()) return *number;
  const double* number = value.if_double();
  if (number == nullptr) return std::nullopt;
  const double whole = round == nullptr ? *number : round(*number);
  if (whole != std::floor(whole) || std::abs(whole) >= 0x1p63) return std::nullopt;
  return static_cast<int64_t>(whole);
}

std::string Shortened(absl::string_view text) {
  if (text.size() <= limits::kSchemaErrorBytesMax) return std::string(text);
  size_t end = limits::kSchemaErrorBytesMax;
  while (end > 0 && (text[end] & 0xC0) == 0x80) --end;  // between two characters
  return absl::StrCat(text.substr(0, end), "…");
}

double Floor(double number) { return std::floor(number); }
double Ceiling(double number) { return std::ceil(number); }

}  // namespace

absl::Status SchemaError(absl::string_view path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(Shortened(path), ": ", Shortened(what)));
}

const absl::string_view* TypeOfKeyword(absl::string_view keyword) {
  static const auto* const kKeywords =
      new absl::flat_hash_map<absl::string_view, absl::string_view>{
          {"$ref", ""},
          {"allOf", ""},
          {"anyOf", ""},
          {"const", ""},
          {"enum", ""},
          {"oneOf", ""},
          {"type", ""},
          {"additionalProperties", "object"},
          {"properties", "object"},
          {"required", "object"},
          {"items", "array"},
          {"maxItems", "array"},
          {"minItems", "array"},
          {"prefixItems", "array"},
          {"maxLength", "string"},
          {"minLength", "string"},
          {"pattern", "string"},
          {"exclusiveMaximum", "number"},
          {"exclusiveMinimum", "number"},
          {"maximum", "number"},
          {"minimum", "number"},
          {"multipleOf", "number"},
      };
  const auto found = kKeywords->find(keyword);
  return found == kKeywords->end() ? nullptr : &found->second;
}

absl::Status CheckKeywords(const json::object& schema, absl::string_view whole,
                           absl::string_view path) {
  const bool may_have_type = whole.empty() || whole == "enum" || whole == "const";
  for (const auto& [key, value] : schema) {
    const absl::string_view keyword(key.data(), key.size());
    if (SaysNothing(keyword, value) || keyword == whole) continue;
    if (TypeOfKeyword(keyword) == nullptr) {
      return SchemaError(path, absl::StrCat("\"", keyword, "\" is not supported"));
    }
    if (whole.empty() || (keyword == "type" && may_have_type)) continue;
    return SchemaError(path,
                       absl::StrCat("\"", keyword, "\" beside \"", whole, "\" is not supported"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> TypesOf(const json::object& schema,
                                                 absl::string_view path) {
  std::vector<std::string> types;
  const auto add = [&types](absl::string_view type) {
    if (std::find(types.begin(), types.end(), type) == types.end()) types.emplace_back(type);
  };
  const json::value* type = schema.if_contains("type");
  if (type == nullptr) {
    for (const auto& [key, value] : schema) {
      const absl::string_view* of_keyword = TypeOfKeyword({key.data(), key.size()});
      if (of_keyword != nullptr && !of_keyword->empty()) add(*of_keyword);
    }
    return types;
  }
  const json::array one = {*type};
  const json::array& several = type->is_array() ? type->get_array() : one;
  for (const json::value& name : several) {
    if (!name.is_string()) {
      return SchemaError(path, "\"type\" is neither a string nor a list of them");
    }
    const absl::string_view text(name.get_string().data(), name.get_string().size());
    if (std::find(std::begin(kTypes), std::end(kTypes), text) == std::end(kTypes)) {
      return SchemaError(path, absl::StrCat("\"type\" names the unknown type ", QuotedJson(text)));
    }
    add(text);
  }
  if (types.empty()) return SchemaError(path, "\"type\" names no type");
  return types;
}

bool IsOfType(const json::value& value, absl::string_view type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_bool();
  if (type == "null") return value.is_null();
  const double* number = value.if_double();
  const bool is_whole = number == nullptr || *number == std::floor(*number);
  return value.is_number() && (type == "number" || is_whole);
}

absl::StatusOr<CountRange> CountRangeOf(const json::object& schema, absl::string_view min_keyword,
                                        absl::string_view max_keyword, absl::string_view path) {
  CountRange range;
  for (const auto& [keyword, bound] :
       {std::pair(min_keyword, &range.min), std::pair(max_keyword, &range.max)}) {
    const json::value* value = schema.if_contains({keyword.data(), keyword.size()});
    if (value == nullptr) continue;
    const std::optional<int64_t> number = WholeNumber(*value, nullptr);
    if (!number || *number < 0 || *number >= CountRange::kUnbounded) {
      return SchemaError(path, absl::StrCat("\"", keyword, "\" is no number of them"));
    }
    *bound = static_cast<uint32_t>(*number);
  }
  if (range.min <= range.max) return range;
  return SchemaError(path,
                     absl::StrCat("\"", min_keyword, "\" is greater than \"", max_keyword, "\""));
}

absl::StatusOr<IntegerBounds> IntegerBoundsOf(const json::object& schema, absl::string_view path) {
  IntegerBounds bounds;
  for (const absl::string_view keyword :
       {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"}) {
    const json::value* value = schema.if_contains({keyword.data(), keyword.size()});
    if (value == nullptr) continue;
    const bool is_min = absl::EndsWith(keyword, "inimum");
    const bool is_exclusive = absl::StartsWith(keyword, "exclusive");
    // The first integer beyond 2.5 is 3, exclusive or not; that beyond an exclusive 3 is 4.
    const std::optional<int64_t> outside =
        WholeNumber(*value, is_min == is_exclusive ? Floor : Ceiling);
    constexpr int64_t kLast = std::numeric_limits<int64_t>::max();
    if (!outside || *outside == kLast || *outside == -kLast - 1) {
      return SchemaError(path, absl::StrCat("\"", keyword, "\" is no number within 64 bits"));
    }
    const int64_t bound = *outside + (is_exclusive ? (is_min ? 1 : -1) : 0);
    if (is_min) bounds.min = std::max(bounds.min.value_or(bound), bound);
    if (!is_min) bounds.max = std::min(bounds.max.value_or(bound), bound);
  }
  if (bounds.min && bounds.max && *bounds.min > *bounds.max) {
    return SchemaError(path, "no integer is within its bounds");
  }
  return bounds;
}

absl::StatusOr<NumberBounds> NumberBoundsOf(const json::object& schema, absl::string_view path) {
  NumberBounds bounds;
  for (const absl::string_view keyword :
       {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"}) {
    const json::value* value = schema.if_contains({keyword.data(), keyword.size()});
    if (value == nullptr) continue;
    if (!value->is_number() || !std::isfinite(value->to_number<double>())) {
      return SchemaError(path, absl::StrCat("\"", keyword, "\" is no number"));
    }
    const bool is_min = absl::EndsWith(keyword, "inimum");
    const NumberBound bound = {value->to_number<double>(), !absl::StartsWith(keyword, "exclusive")};
    std::optional<NumberBound>& known = is_min ? bounds.min : bounds.max;
    const bool is_narrower = !known || bound.number == known->number ||
                             (bound.number > known->number) == is_min;  // exclusive ones come last
    if (is_narrower) known = bound;
  }
  if (bounds.min && bounds.max) {
    const bool are_equal = bounds.min->number == bounds.max->number;
    const bool is_within = bounds.min->is_inclusive && bounds.max->is_inclusive;
    if (bounds.min->number > bounds.max->number || (are_equal && !is_within))
      return SchemaError(path, "no number is within its bounds");
  }
  return bounds;
}

absl::StatusOr<std::optional<DecimalStep>> MultipleOf(const json::object& schema,
                                                      absl::string_view path) {
  const json::value* value = schema.if_contains("multipleOf");
  if (value == nullptr) return std::nullopt;
  std::optional<DecimalStep> step;
  if (const int64_t* whole = value->if_int64()) {
    step = StepOf(*whole);
  } else if (value->is_number() && std::isfinite(value->to_number<double>())) {
    step = StepOf(value->to_number<double>());
  }
  if (step && step->decimals < limits::kJsonBoundedDigitsMax) return step;
  return SchemaError(path, absl::StrCat("\"multipleOf\" is no positive number of at most ",
                                        limits::kJsonIntegerDigitsMax, " digits and ",
                                        limits::kJsonBoundedDigitsMax - 1, " decimals"));
}

absl::StatusOr<std::optional<Pattern>> PatternOf(const json::object& schema,
                                                 absl::string_view path) {
  std::optional<std::string> text;
  if (const json::value* pattern = schema.if_contains("pattern"); pattern != nullptr) {
    if (!pattern->is_string()) return SchemaError(path, "\"pattern\" is no string");
    text = std::string(pattern->get_string());
  } else if (const json::value* format = schema.if_contains("format"); format != nullptr) {
    if (!format->is_string()) return SchemaError(path, "\"format\" is no string");
    text = PatternOfFormat({format->get_string().data(), format->get_string().size()});
  }
  if (!text) return std::nullopt;
  absl::StatusOr<Pattern> pattern = ParsePattern(*text);
  if (pattern.ok()) return *std::move(pattern);
  return SchemaError(path, absl::StrCat("\"pattern\": ", pattern.status().message()));
}

}  // namespace ultraspeed::grammar
