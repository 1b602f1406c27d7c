#include "common/grammar/json_schema.h"

#include <boost/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/grammar/json_rules.h"
#include "common/grammar/schema_compiler.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace ultraspeed::grammar {
namespace {

namespace json = boost::json;

absl::StatusOr<json::value> ParseSchema(absl::string_view text, absl::string_view name) {
  if (text.size() > limits::kSchemaBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": has ", text.size(), " bytes; at most ",
                                                   limits::kSchemaBytesMax, " are supported"));
  }
  json::parse_options options;
  options.max_depth = limits::kSchemaDepthMax;
  boost::system::error_code error;
  json::value schema = json::parse(json::string_view(text.data(), text.size()), error, {}, options);
  if (error == json::error::too_deep) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": is nested deeper than ", limits::kSchemaDepthMax, " levels"));
  }
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": is not valid JSON in UTF-8: ", error.message()));
  }
  return schema;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Grammar>> FromJsonSchema(absl::string_view schema_text,
                                                              absl::string_view field_name) {
  ASSIGN_OR_RETURN(const json::value schema, ParseSchema(schema_text, field_name));
  GrammarBuilder builder;
  ASSIGN_OR_RETURN(const RuleId root, SchemaCompiler(&builder, &schema, field_name).Compile());
  return builder.Build(root, field_name);
}

absl::StatusOr<RuleId> AddParameters(GrammarBuilder* builder, absl::string_view schema_text,
                                     absl::string_view field_name) {
  ASSIGN_OR_RETURN(const json::value schema, ParseSchema(schema_text, field_name));
  return SchemaCompiler(builder, &schema, field_name).CompileParameters();
}

std::shared_ptr<const Grammar> AnyJsonObject() {
  GrammarBuilder builder;
  auto grammar = builder.Build(JsonRules(&builder).AnyObject(), "JSON object");
  CHECK_THAT(grammar.ok(), ==, true);
  return *std::move(grammar);
}

}  // namespace ultraspeed::grammar
