#include "router/tool_call.h"

#include <boost/json.hpp>

#include "common/limits.h"
#include "router/json_text.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

JsonTypes TypeOf(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return kJsonNull;
    case json::kind::bool_:
      return kJsonBoolean;
    case json::kind::string:
      return kJsonString;
    case json::kind::array:
      return kJsonArray;
    case json::kind::object:
      return kJsonObject;
    default:
      return kJsonNumber;
  }
}

JsonTypes TypeNamed(const json::value& name) {
  if (name == "null") return kJsonNull;
  if (name == "boolean") return kJsonBoolean;
  if (name == "integer" || name == "number") return kJsonNumber;
  if (name == "string") return kJsonString;
  if (name == "array") return kJsonArray;
  if (name == "object") return kJsonObject;
  return kJsonAny;
}

JsonTypes TypesOf(const json::value& schema);

// The sum over an array's items.
JsonTypes SumOf(const json::value& items, JsonTypes (*types)(const json::value&)) {
  JsonTypes sum = 0;
  if (!items.is_array()) return kJsonAny;
  for (const json::value& item : items.get_array()) sum |= types(item);
  return sum == 0 ? kJsonAny : sum;
}

JsonTypes TypesOf(const json::value& schema) {
  const json::object* object = schema.if_object();
  if (object == nullptr) return kJsonAny;
  JsonTypes types = kJsonAny;
  if (const json::value* type = object->if_contains("type")) {
    types &= type->is_string() ? TypeNamed(*type) : SumOf(*type, TypeNamed);
  }
  if (const json::value* values = object->if_contains("enum")) types &= SumOf(*values, TypeOf);
  if (const json::value* value = object->if_contains("const")) types &= TypeOf(*value);
  for (const char* one_of : {"anyOf", "oneOf"}) {
    if (const json::value* schemas = object->if_contains(one_of)) types &= SumOf(*schemas, TypesOf);
  }
  return types == 0 ? kJsonAny : types;  // a schema that nothing can meet
}

}  // namespace

JsonTypes TypeOfJson(absl::string_view text) {
  json::parse_options options;
  options.max_depth = limits::kJsonDepthMax;
  boost::system::error_code error;
  const json::value value =
      json::parse(json::string_view(text.data(), text.size()), error, {}, options);
  return error ? JsonTypes{0} : TypeOf(value);
}

ParameterTypes ParameterTypesOf(absl::string_view parameters) {
  ParameterTypes types;
  const auto schema = ParseJsonObject(parameters, "parameters");
  const json::value* properties = schema.ok() ? schema->if_contains("properties") : nullptr;
  if (properties == nullptr || !properties->is_object()) return types;
  for (const auto& property : properties->get_object()) {
    types[std::string(property.key())] = TypesOf(property.value());
  }
  return types;
}

}  // namespace ultraspeed::router
