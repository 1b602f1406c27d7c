#include "common/grammar/tool_calls.h"

#include "absl/strings/str_cat.h"
#include "common/grammar/combinators.h"
#include "common/grammar/json_schema.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace ultraspeed::grammar {
namespace {

RuleId AnyParameters(GrammarBuilder* builder) {
  const RuleId key = TextUntil(builder, ">"), value = TextUntil(builder, kParameterEnd);
  return Repeat(
      builder,
      Sequence(builder, {Literal(builder, kParameterBegin), key, value, Literal(builder, "\n")}),
      {});
}

// A tool that cannot be called would be left out of the others' grammar, so it is tried alone.
absl::StatusOr<RuleId> StrictParameters(GrammarBuilder* builder, const CallableTool& tool,
                                        absl::string_view field_name) {
  if (tool.parameters.empty()) return Literal(builder, "");
  GrammarBuilder alone;
  ASSIGN_OR_RETURN(const RuleId root, AddParameters(&alone, tool.parameters, field_name));
  RETURN_IF_ERROR(alone.Build(root, field_name).status());
  return AddParameters(builder, tool.parameters, field_name);
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Grammar>> FromTools(absl::Span<const CallableTool> tools,
                                                         absl::string_view field_name) {
  size_t num_bytes = 0;
  for (const CallableTool& tool : tools) num_bytes += tool.is_strict ? tool.parameters.size() : 0;
  if (num_bytes > limits::kStrictSchemasBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        field_name, ": strict ones have schemas of ", num_bytes, " bytes together; at most ",
        limits::kStrictSchemasBytesMax, " are supported"));
  }
  GrammarBuilder builder;
  const RuleId any_parameters = AnyParameters(&builder);
  const RuleId call = builder.AddRule();
  const NodeId name = builder.AddLiteral(builder.Entry(call), absl::StrCat("\n", kFunctionBegin));
  const NodeId behind = builder.AddNode(call);
  for (size_t i = 0; i < tools.size(); ++i) {
    RuleId parameters = any_parameters;
    if (tools[i].is_strict) {
      ASSIGN_OR_RETURN(parameters,
                       StrictParameters(&builder, tools[i],
                                        absl::StrCat(field_name, "[", i, "].parameters_json")));
    }
    builder.AddCall(builder.AddLiteral(name, absl::StrCat(tools[i].name, ">\n")), parameters,
                    behind);
  }
  builder.SetFinal(builder.AddLiteral(behind, absl::StrCat(kFunctionEnd, "\n")));
  return builder.Build(call, field_name);
}

}  // namespace ultraspeed::grammar
