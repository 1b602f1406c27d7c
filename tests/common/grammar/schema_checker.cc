#include "tests/common/grammar/schema_checker.h"

#include <algorithm>
#include <cmath>
#include <regex>
#include <set>
#include <string>
#include <utility>

#include "absl/cleanup/cleanup.h"

namespace ultraspeed::grammar {
namespace {

namespace json = boost::json;

bool IsType(const json::value& value, const json::string& type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_bool();
  if (type == "null") return value.is_null();
  if (type == "number") return value.is_number();
  return value.is_number() && std::floor(value.to_number<double>()) == value.to_number<double>();
}

bool WithinExclusive(double number, const json::object& schema) {
  if (schema.contains("exclusiveMinimum") &&
      number <= schema.at("exclusiveMinimum").to_number<double>()) {
    return false;
  }
  return !schema.contains("exclusiveMaximum") ||
         number < schema.at("exclusiveMaximum").to_number<double>();
}

bool Within(double number, const json::object& schema, const char* min, const char* max) {
  if (schema.contains(min) && number < schema.at(min).to_number<double>()) return false;
  return !schema.contains(max) || number <= schema.at(max).to_number<double>();
}

bool IsValidObject(const json::object& value, const json::object& schema, const json::value& root) {
  if (schema.contains("required")) {
    for (const json::value& name : schema.at("required").as_array()) {
      if (!value.contains(name.as_string())) return false;
    }
  }
  for (const auto& [name, member] : value) {
    if (schema.contains("properties") && schema.at("properties").as_object().contains(name)) {
      if (!IsValid(member, schema.at("properties").at(name), root)) return false;
    } else if (schema.contains("additionalProperties")) {
      if (!IsValid(member, schema.at("additionalProperties"), root)) return false;
    }
  }
  return true;
}

bool IsValidArray(const json::array& value, const json::object& schema, const json::value& root) {
  if (!Within(static_cast<double>(value.size()), schema, "minItems", "maxItems")) return false;
  const json::array* first =
      schema.contains("prefixItems") ? &schema.at("prefixItems").as_array() : nullptr;
  for (size_t i = 0; i < value.size(); ++i) {
    if (first != nullptr && i < first->size()) {
      if (!IsValid(value[i], first->at(i), root)) return false;
    } else if (schema.contains("items")) {
      if (!IsValid(value[i], schema.at("items"), root)) return false;
    }
  }
  return true;
}

double NumCharacters(const json::string& text) {
  return static_cast<double>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

// Of a step that a double may not be exactly.
bool IsMultiple(double number, const json::object& schema) {
  const json::value* step = schema.if_contains("multipleOf");
  if (step == nullptr) return true;
  const double quotient = number / step->to_number<double>();
  return std::abs(quotient - std::round(quotient)) <= 1e-12 * std::max(1.0, std::abs(quotient));
}

}  // namespace

bool IsValid(const json::value& value, const json::value& schema_value, const json::value& root) {
  // A schema that is asked about a value to answer for that value allows nothing.
  thread_local std::set<std::pair<const json::value*, const json::value*>> asked;
  const std::pair key(&value, &schema_value);
  if (!asked.insert(key).second) return false;
  const absl::Cleanup answered = [&key] { asked.erase(key); };
  if (schema_value.is_bool()) return schema_value.get_bool();
  const json::object& schema = schema_value.as_object();
  if (schema.contains("$ref")) {
    const json::string& reference = schema.at("$ref").as_string();
    return IsValid(value, root.at_pointer(reference.subview(1)), root);
  }
  for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
    if (!schema.contains(keyword)) continue;
    const json::array& several = schema.at(keyword).as_array();
    return std::any_of(several.begin(), several.end(),
                       [&](auto& one) { return IsValid(value, one, root); });
  }
  if (schema.contains("const") && value != schema.at("const")) return false;
  if (schema.contains("enum")) {
    const json::array& values = schema.at("enum").as_array();
    if (std::find(values.begin(), values.end(), value) == values.end()) return false;
  }
  if (schema.contains("type")) {
    const json::value& type = schema.at("type");
    const json::array types = type.is_array() ? type.get_array() : json::array{type};
    if (std::none_of(types.begin(), types.end(),
                     [&](auto& one) { return IsType(value, one.as_string()); }))
      return false;
  }
  if (value.is_object()) return IsValidObject(value.get_object(), schema, root);
  if (value.is_array()) return IsValidArray(value.get_array(), schema, root);
  if (value.is_string()) {
    if (!Within(NumCharacters(value.get_string()), schema, "minLength", "maxLength")) return false;
    if (!schema.contains("pattern")) return true;
    return std::regex_search(std::string(value.get_string()),
                             std::regex(std::string(schema.at("pattern").as_string())));
  }
  if (value.is_number()) {
    const auto number = value.to_number<double>();
    return Within(number, schema, "minimum", "maximum") && WithinExclusive(number, schema) &&
           IsMultiple(number, schema);
  }
  return true;
}

}  // namespace ultraspeed::grammar
