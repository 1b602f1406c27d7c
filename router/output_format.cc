#include "router/output_format.h"

#include "absl/strings/str_cat.h"
#include "common/grammar/json_schema.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "router/field_checks.h"

namespace ultraspeed::router {
namespace {

constexpr absl::string_view kField = "options.output_format";
constexpr absl::string_view kSchemaField = "options.output_format.json_schema";

absl::string_view NameOf(const v1::OutputFormat& format) {
  return format.has_json_schema() ? "json_schema" : "json_object";
}

}  // namespace

absl::Status CheckOutputFormat(const v1::GenerateOptions& options) {
  if (!options.has_output_format()) return absl::OkStatus();
  const v1::OutputFormat& format = options.output_format();
  if (format.format_case() == v1::OutputFormat::FORMAT_NOT_SET) {
    return OutOfBounds(kField, "empty", "json_object or json_schema");
  }
  if (options.ignore_eos()) {
    return OutOfBounds("options.ignore_eos", "true", "false where there is an output format");
  }
  if (!format.has_json_schema()) {
    if (format.json_object()) return absl::OkStatus();
    return OutOfBounds("options.output_format.json_object", "false", "true");
  }
  RETURN_IF_ERROR(CheckBytes(kSchemaField, format.json_schema(), 1, limits::kSchemaBytesMax));
  return grammar::FromJsonSchema(format.json_schema(), kSchemaField).status();
}

absl::Status CheckFormatFits(const v1::ChatRequest& request) {
  if (!request.options().has_output_format()) return absl::OkStatus();
  const absl::string_view name = NameOf(request.options().output_format());
  if (request.tools_size() > 0 && request.tool_choice() != v1::TOOL_CHOICE_NONE) {
    return OutOfBounds(kField, name,
                       absl::StrCat("absent where tools has ", request.tools_size(),
                                    " entries and tool_choice is not none"));
  }
  if (request.messages(request.messages_size() - 1).role() == v1::ROLE_ASSISTANT) {
    return OutOfBounds(kField, name, "absent where the answer is begun");
  }
  return absl::OkStatus();
}

}  // namespace ultraspeed::router
