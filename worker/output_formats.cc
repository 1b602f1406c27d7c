#include "worker/output_formats.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/grammar/tool_calls.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "worker/token_bytes.h"

namespace ultraspeed::worker {
namespace {

// Of the model, as far as they may be sampled.
std::vector<int32_t> Sampled(std::vector<int32_t> tokens, int num_tokens) {
  std::erase_if(tokens, [&](int32_t token) { return token < 0 || token >= num_tokens; });
  return tokens;
}

}  // namespace

OutputFormats::OutputFormats(absl::string_view tokenizer_json, int num_tokens,
                             const std::vector<int32_t>& end_tokens)
    : num_tokens_(num_tokens), end_tokens_(Sampled(end_tokens, num_tokens)) {
  absl::StatusOr<std::vector<std::string>> bytes = ReadTokenBytes(tokenizer_json, num_tokens);
  usable_ = bytes.status();
  if (!bytes.ok()) return;
  constraints_ = std::make_unique<grammar::ConstraintCache>(
      std::make_shared<const grammar::Vocabulary>(*std::move(bytes), end_tokens_));
  grammar::TokenMask no_end(num_tokens);
  for (int32_t token = 0; token < num_tokens; ++token) no_end.Allow(token);
  for (const int32_t token : end_tokens_) no_end.Forbid(token);
  no_end_ = std::make_shared<const grammar::TokenMask>(std::move(no_end));
}

absl::Status OutputFormats::CheckMark(absl::string_view field, int32_t token) const {
  if (token >= 0 && token < num_tokens_ && no_end_->Allows(token)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, "=", token, ": must be in 0..", num_tokens_ - 1, " and end no text"));
}

absl::StatusOr<OutputGrammar> OutputFormats::GrammarOf(const v1::WorkerGenerateRequest& request) {
  if (!request.has_output_format() && request.has_output_format_after_token_id())
    return absl::InvalidArgumentError("output_format_after_token_id: there is no output_format");
  if (!request.has_output_format() && !request.has_tool_calls()) return OutputGrammar{};
  if (request.has_output_format() && request.has_tool_calls())
    return absl::InvalidArgumentError("tool_calls: must be absent where there is an output_format");
  if (!usable_.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(request.has_tool_calls() ? "tool_calls" : "output_format",
                     ": not with this model: ", std::string(usable_.message())));
  }
  if (request.has_tool_calls()) return GrammarOf(request.tool_calls());
  for (const int32_t token : end_tokens_) {
    const auto& stops = request.stop_token_ids();
    if (std::find(stops.begin(), stops.end(), token) != stops.end()) continue;
    return absl::InvalidArgumentError(absl::StrCat("stop_token_ids: with output_format, must hold ",
                                                   token, ", which ends the model's texts"));
  }
  OutputGrammar grammar;
  const v1::OutputFormat& format = request.output_format();
  switch (format.format_case()) {
    case v1::OutputFormat::kJsonObject:
      if (!format.json_object())
        return absl::InvalidArgumentError("output_format.json_object=false: must be true");
      grammar.constraint = constraints_->ForAnyJsonObject();
      break;
    case v1::OutputFormat::kJsonSchema: {
      ASSIGN_OR_RETURN(grammar.constraint, constraints_->ForJsonSchema(
                                               format.json_schema(), "output_format.json_schema"));
      break;
    }
    case v1::OutputFormat::FORMAT_NOT_SET:
      return absl::InvalidArgumentError(
          "output_format: must have one of json_object and json_schema");
  }
  if (request.has_output_format_after_token_id()) {
    const int32_t token = request.output_format_after_token_id();
    RETURN_IF_ERROR(CheckMark("output_format_after_token_id", token));
    grammar.after_token = token;
    grammar.before = no_end_;
  }
  return grammar;
}

absl::StatusOr<OutputGrammar> OutputFormats::GrammarOf(const v1::ToolCallFormat& calls) {
  if (calls.tools_size() < 1 || calls.tools_size() > limits::kToolsMax) {
    return absl::InvalidArgumentError(absl::StrCat("tool_calls.tools: ", calls.tools_size(),
                                                   " tools; must be 1..", limits::kToolsMax));
  }
  const std::pair<absl::string_view, int32_t> marks[] = {
      {"tool_calls.begin_token_id", calls.begin_token_id()},
      {"tool_calls.end_token_id", calls.end_token_id()},
      {"tool_calls.thought_begin_token_id", calls.thought_begin_token_id()},
      {"tool_calls.thought_end_token_id", calls.thought_end_token_id()}};
  std::set<int32_t> known;
  for (const auto& [field, token] : marks) {
    RETURN_IF_ERROR(CheckMark(field, token));
    if (known.insert(token).second) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(field, "=", token, ": must differ from the other three"));
  }
  std::vector<grammar::CallableTool> tools;
  for (const v1::Tool& tool : calls.tools())
    tools.push_back({tool.name(), tool.strict(), tool.parameters_json()});
  grammar::TokenMask only_end(num_tokens_);
  only_end.Allow(calls.end_token_id());
  OutputGrammar grammar;
  ASSIGN_OR_RETURN(grammar.constraint, constraints_->ForTools(tools, "tool_calls.tools"));
  grammar.calls = {.begin = calls.begin_token_id(),
                   .end = calls.end_token_id(),
                   .thought_begin = calls.thought_begin_token_id(),
                   .thought_end = calls.thought_end_token_id(),
                   .only_end = std::make_shared<const grammar::TokenMask>(std::move(only_end))};
  return grammar;
}

}  // namespace ultraspeed::worker
