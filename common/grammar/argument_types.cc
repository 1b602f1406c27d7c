#include "common/grammar/argument_types.h"

#include <boost/json.hpp>
#include <cmath>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "common/grammar/schema_keywords.h"
#include "common/limits.h"

namespace ultraspeed::grammar {
namespace {

namespace json = boost::json;

constexpr ArgumentTypes kUnknown = {.types = kJsonAny, .open = 0};

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
    case json::kind::double_:
      return std::floor(value.get_double()) == value.get_double() ? kJsonInteger : kJsonFraction;
    default:
      return kJsonInteger;
  }
}

JsonTypes TypeNamed(absl::string_view name) {
  if (name == "null") return kJsonNull;
  if (name == "boolean") return kJsonBoolean;
  if (name == "integer") return kJsonInteger;
  if (name == "number") return kJsonNumber;
  if (name == "string") return kJsonString;
  if (name == "array") return kJsonArray;
  if (name == "object") return kJsonObject;
  return kJsonAny;
}

JsonTypes TypesNamed(const json::value& type) {
  const json::array one = {type};
  JsonTypes types = 0;
  for (const json::value& name : type.is_array() ? type.get_array() : one) {
    const json::string* text = name.if_string();
    types |= text == nullptr ? kJsonAny : TypeNamed({text->data(), text->size()});
  }
  return types;
}

// Of one property.
class TypeReader {
 public:
  TypeReader(const json::value& root, int* num_steps) : root_(root), num_steps_(num_steps) {}

  ArgumentTypes Read(const json::value& schema) {
    const ArgumentTypes types = Read(schema, 0);
    return types.types == 0 ? kUnknown : types;  // nothing can meet it
  }

 private:
  // A schema that is asked for again, by itself too, adds nothing to the sum that it is part of.
  ArgumentTypes Read(const json::value& schema, int depth) {
    if (schema == true) return {};
    const json::object* const object = schema.if_object();
    const bool is_too_much =
        depth > limits::kSchemaDepthMax || ++*num_steps_ > limits::kArgumentTypeStepsMax;
    if (object == nullptr || is_too_much) return kUnknown;
    const auto [found, is_new] = known_.try_emplace(object, ArgumentTypes{.types = 0, .open = 0});
    if (!is_new) return found->second;
    ArgumentTypes types = ReadKeywords(*object);
    for (const char* one_of : {"anyOf", "oneOf"}) {
      if (const json::value* schemas = object->if_contains(one_of))
        Narrow(ReadSum(*schemas, depth), &types);
    }
    const json::value* all = object->if_contains("allOf");
    if (all != nullptr && all->is_array()) {
      for (const json::value& one : all->get_array()) Narrow(Read(one, depth + 1), &types);
    }
    if (const json::value* reference = object->if_contains("$ref")) {
      const json::value* target = Find(*reference);
      Narrow(target == nullptr ? kUnknown : Read(*target, depth + 1), &types);
    }
    return known_[object] = types;
  }

  // Of what stands in the schema itself. Without `type`, it is about what its keywords are about.
  ArgumentTypes ReadKeywords(const json::object& schema) {
    JsonTypes about = 0;
    for (const auto& [key, value] : schema) {
      const absl::string_view* type = TypeOfKeyword({key.data(), key.size()});
      if (type != nullptr && !type->empty()) about |= TypeNamed(*type);
    }
    const json::value* type = schema.if_contains("type");
    const JsonTypes types = type != nullptr ? TypesNamed(*type) : about == 0 ? kJsonAny : about;
    ArgumentTypes read = {.types = types, .open = static_cast<JsonTypes>(types & ~about)};
    if (const json::value* value = schema.if_contains("const")) Narrow(ReadValues({*value}), &read);
    const json::value* values = schema.if_contains("enum");
    if (values != nullptr && values->is_array()) Narrow(ReadValues(values->get_array()), &read);
    return read;
  }

  ArgumentTypes ReadValues(const json::array& values) {
    ArgumentTypes read = {.types = 0, .open = 0};
    bool has_true = false, has_false = false;
    for (const json::value& value : values) {
      ++*num_steps_;
      read.types |= TypeOf(value);
      has_true = has_true || value == true;
      has_false = has_false || value == false;
    }
    read.open |= read.types & kJsonNull;
    if (has_true && has_false) read.open |= kJsonBoolean;
    return read;
  }

  ArgumentTypes ReadSum(const json::value& schemas, int depth) {
    if (!schemas.is_array() || schemas.get_array().empty()) return kUnknown;
    ArgumentTypes sum = {.types = 0, .open = 0};
    for (const json::value& schema : schemas.get_array()) {
      const ArgumentTypes one = Read(schema, depth + 1);
      sum.types |= one.types;
      sum.open |= one.open;
    }
    return sum;
  }

  static void Narrow(const ArgumentTypes& also, ArgumentTypes* types) {
    types->types &= also.types;
    types->open &= also.open;
  }

  const json::value* Find(const json::value& reference) const {
    const json::string* text = reference.if_string();
    if (text == nullptr || !absl::StartsWith({text->data(), text->size()}, "#")) return nullptr;
    boost::system::error_code error;
    return root_.find_pointer(text->subview(1), error);
  }

  const json::value& root_;
  int* const num_steps_;
  absl::flat_hash_map<const json::object*, ArgumentTypes> known_;
};

// How the template writes Python's constants into prompts, and models back.
absl::string_view JsonSpelling(absl::string_view text) {
  if (text == "True") return "true";
  if (text == "False") return "false";
  if (text == "None") return "null";
  return text;
}

// Of a JSON text; 0: it is none.
JsonTypes TypeOfJson(absl::string_view text) {
  json::parse_options options;
  options.max_depth = limits::kJsonDepthMax;
  boost::system::error_code error;
  const json::value value =
      json::parse(json::string_view(text.data(), text.size()), error, {}, options);
  return error ? JsonTypes{0} : TypeOf(value);
}

}  // namespace

ArgumentTypesByName ArgumentTypesOf(const json::value& schema) {
  ArgumentTypesByName types;
  const json::object* object = schema.if_object();
  const json::value* properties = object == nullptr ? nullptr : object->if_contains("properties");
  if (properties == nullptr || !properties->is_object()) return types;
  int num_steps = 0;
  for (const auto& property : properties->get_object())
    types[std::string(property.key())] = TypeReader(schema, &num_steps).Read(property.value());
  return types;
}

std::optional<absl::string_view> JsonOfArgument(absl::string_view text, JsonTypes types) {
  const absl::string_view spelling = JsonSpelling(absl::StripAsciiWhitespace(text));
  // A text in quotes is a text, quotes and all.
  if ((TypeOfJson(spelling) & types & ~kJsonString) != 0) return spelling;
  return std::nullopt;
}

}  // namespace ultraspeed::grammar
