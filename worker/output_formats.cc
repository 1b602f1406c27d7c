#include "worker/output_formats.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
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

absl::StatusOr<OutputGrammar> OutputFormats::GrammarOf(const v1::WorkerGenerateRequest& request) {
  if (!request.has_output_format()) {
    if (request.has_output_format_after_token_id())
      return absl::InvalidArgumentError("output_format_after_token_id: there is no output_format");
    return OutputGrammar{};
  }
  if (!usable_.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("output_format: not with this model: ", std::string(usable_.message())));
  }
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
    if (token < 0 || token >= num_tokens_ || !no_end_->Allows(token)) {
      return absl::InvalidArgumentError(absl::StrCat("output_format_after_token_id=", token,
                                                     ": must be in 0..", num_tokens_ - 1,
                                                     " and end no text"));
    }
    grammar.after_token = token;
    grammar.before = no_end_;
  }
  return grammar;
}

}  // namespace ultraspeed::worker
