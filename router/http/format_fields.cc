#include "router/http/format_fields.h"

#include <algorithm>
#include <boost/json.hpp>

#include "absl/strings/ascii.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

constexpr size_t kNameBytesMax = 64;

void ReadSchema(RequestFields& fields, v1::GenerateOptions* options) {
  const json::object* schema = fields.Object("schema");
  if (schema == nullptr) {
    fields.Refuse("schema", "an object");
  } else {
    options->mutable_output_format()->set_json_schema(json::serialize(*schema));
  }
}

// OpenAI's, with a name that has to be there.
void ReadNamedSchema(RequestFields& fields, v1::GenerateOptions* options) {
  const std::string name = fields.String("name").value_or("");
  const bool is_plain = std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-';
  });
  if (name.empty() || name.size() > kNameBytesMax || !is_plain)
    fields.Refuse("name", "1..64 of a-z, A-Z, 0-9, _ and -");
  fields.String("description");
  fields.Bool("strict");
  ReadSchema(fields, options);
}

// True if it is a schema's.
bool ReadType(RequestFields& format, v1::GenerateOptions* options) {
  const std::string type = format.Choice("type", {"text", "json_object", "json_schema"});
  if (type.empty()) format.Refuse("type", "text, json_object or json_schema");
  if (type == "json_object") options->mutable_output_format()->set_json_object(true);
  return type == "json_schema";
}

// Of type json_schema, where `fields` has the object `name`.
void ReadSchemaFormat(RequestFields& fields, absl::string_view name, v1::GenerateOptions* options) {
  const json::object* object = fields.Object(name);
  if (object == nullptr) return;
  RequestFields format(*object, fields.PathOf(name) + ".");
  if (format.Choice("type", {"json_schema"}).empty()) format.Refuse("type", "json_schema");
  ReadSchema(format, options);
  fields.Merge(format.status());
}

}  // namespace

void ReadResponseFormat(RequestFields& fields, v1::GenerateOptions* options) {
  const json::object* object = fields.Object("response_format");
  if (object == nullptr) return;
  RequestFields format(*object, "response_format.");
  if (ReadType(format, options)) {
    const json::object* named = format.Object("json_schema");
    if (named == nullptr) {
      format.Refuse("json_schema", "an object");
    } else {
      RequestFields inner(*named, "response_format.json_schema.");
      ReadNamedSchema(inner, options);
      format.Merge(inner.status());
    }
  }
  fields.Merge(format.status());
}

void ReadTextFormat(RequestFields& fields, v1::GenerateOptions* options) {
  const json::object* text = fields.Object("text");
  if (text == nullptr) return;
  RequestFields outer(*text, "text.");
  if (const json::object* object = outer.Object("format")) {
    RequestFields format(*object, "text.format.");
    if (ReadType(format, options)) ReadNamedSchema(format, options);
    outer.Merge(format.status());
  }
  fields.Merge(outer.status());
}

std::string ReadOutputConfig(RequestFields& fields, v1::GenerateOptions* options) {
  ReadSchemaFormat(fields, "output_format", options);
  const json::object* config = fields.Object("output_config");
  if (config == nullptr) return "output_format";
  RequestFields inner(*config, "output_config.");
  if (inner.Find("format") == nullptr) return "output_format";
  if (fields.Find("output_format") != nullptr)
    fields.Refuse("output_format", "absent where output_config.format is given");
  ReadSchemaFormat(inner, "format", options);
  fields.Merge(inner.status());
  return "output_config.format";
}

}  // namespace ultraspeed::router
