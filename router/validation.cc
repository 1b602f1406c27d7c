#include "router/validation.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "router/field_checks.h"
#include "router/output_format.h"

namespace ultraspeed::router {
namespace {

absl::Status CheckSampling(const v1::SamplingParams& sampling, const ModelFacts& facts) {
  if (sampling.has_temperature()) {
    if (absl::Status status = CheckRange("options.sampling.temperature", sampling.temperature(),
                                         0.0f, limits::kTemperatureMax);
        !status.ok()) {
      return status;
    }
  }
  if (sampling.has_top_k()) {
    if (absl::Status status =
            CheckRange("options.sampling.top_k", sampling.top_k(), 0, facts.vocabulary_size);
        !status.ok()) {
      return status;
    }
  }
  if (sampling.has_top_p() && !(sampling.top_p() > 0 && sampling.top_p() <= 1)) {
    return OutOfBounds("options.sampling.top_p", sampling.top_p(), "over 0 and at most 1");
  }
  return absl::OkStatus();
}

absl::Status CheckStop(const v1::GenerateOptions& options) {
  if (options.stop_size() > limits::kStopStringsMax) {
    return absl::InvalidArgumentError(absl::StrCat("options.stop has ", options.stop_size(),
                                                   " strings; it must have 0..",
                                                   limits::kStopStringsMax));
  }
  for (int i = 0; i < options.stop_size(); ++i) {
    const std::string field = absl::StrCat("options.stop[", i, "]");
    if (absl::Status status = CheckBytes(field, options.stop(i), 1, limits::kStopStringBytesMax);
        !status.ok()) {
      return status;
    }
    if (absl::Status status = CheckUtf8(field, options.stop(i)); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckClientRequestId(const std::string& id) {
  if (absl::Status status =
          CheckBytes("options.client_request_id", id, 0, limits::kClientRequestIdBytesMax);
      !status.ok()) {
    return status;
  }
  const auto control = std::find_if(id.begin(), id.end(), [](char c) {
    return absl::ascii_iscntrl(static_cast<unsigned char>(c));
  });
  if (control == id.end()) return CheckUtf8("options.client_request_id", id);
  return absl::InvalidArgumentError(absl::StrCat(
      "options.client_request_id has the control character ", static_cast<int>(*control),
      " at byte ", control - id.begin(), "; none is allowed"));
}

absl::StatusOr<GenerationParams> ValidateOptions(const v1::GenerateOptions& options,
                                                 const ModelFacts& facts) {
  if (options.has_max_tokens()) {
    if (absl::Status status = CheckRange<int64_t>("options.max_tokens", options.max_tokens(), 1,
                                                  facts.context_tokens - 1);
        !status.ok()) {
      return status;
    }
  }
  if (absl::Status status = CheckSampling(options.sampling(), facts); !status.ok()) return status;
  if (absl::Status status = CheckStop(options); !status.ok()) return status;
  if (!v1::ServiceTier_IsValid(options.service_tier())) {
    return OutOfBounds("options.service_tier", static_cast<int>(options.service_tier()),
                       absl::StrCat(static_cast<int>(v1::SERVICE_TIER_UNSPECIFIED), "..",
                                    static_cast<int>(v1::SERVICE_TIER_ULTRASPEED)));
  }
  if (options.has_logprobs()) {
    if (absl::Status status =
            CheckRange("options.logprobs", options.logprobs(), 0, limits::kLogprobsMax);
        !status.ok()) {
      return status;
    }
  }
  if (absl::Status status = CheckClientRequestId(options.client_request_id()); !status.ok())
    return status;
  if (absl::Status status = CheckRange("options.priority", options.priority(), limits::kPriorityMin,
                                       limits::kPriorityMax);
      !status.ok()) {
    return status;
  }
  if (absl::Status status = CheckOutputFormat(options); !status.ok()) return status;

  GenerationParams params;
  const v1::SamplingParams& sampling = options.sampling();
  if (options.has_max_tokens()) params.max_tokens = options.max_tokens();
  params.temperature =
      sampling.has_temperature() ? sampling.temperature() : facts.default_temperature;
  params.top_k = sampling.top_k();
  params.top_p = sampling.has_top_p() ? sampling.top_p() : facts.default_top_p;
  if (sampling.has_seed()) params.seed = sampling.seed();
  params.stop.assign(options.stop().begin(), options.stop().end());
  if (options.service_tier() != v1::SERVICE_TIER_UNSPECIFIED)
    params.service_tier = options.service_tier();
  if (options.has_logprobs()) params.logprobs = options.logprobs();
  if (options.has_speculation()) params.speculation = options.speculation();
  params.ignore_eos = options.ignore_eos();
  params.client_request_id = options.client_request_id();
  params.priority = options.priority();
  if (options.has_output_format()) params.output_format = options.output_format();
  return params;
}

absl::Status CheckModelName(const std::string& model) {
  return CheckBytes("model", model, 1, limits::kModelNameBytesMax);
}

}  // namespace

absl::StatusOr<GenerationParams> ValidateGenerate(const v1::GenerateRequest& request,
                                                  const ModelFacts& facts) {
  if (absl::Status status = CheckModelName(request.model()); !status.ok()) return status;
  if (absl::Status status = CheckBytes("prompt", request.prompt(), 1, limits::kPromptBytesMax);
      !status.ok()) {
    return status;
  }
  if (absl::Status status = CheckUtf8("prompt", request.prompt()); !status.ok()) return status;
  return ValidateOptions(request.options(), facts);
}

absl::StatusOr<ChatParams> ValidateChat(const v1::ChatRequest& request, const ModelFacts& facts) {
  if (absl::Status status = CheckModelName(request.model()); !status.ok()) return status;
  absl::StatusOr<Conversation> conversation = ValidateConversation(request);
  if (!conversation.ok()) return conversation.status();
  if (absl::Status status = CheckFormatFits(request); !status.ok()) return status;
  absl::StatusOr<GenerationParams> generation = ValidateOptions(request.options(), facts);
  if (!generation.ok()) return generation.status();
  ChatParams params;
  params.generation = *std::move(generation);
  params.conversation = *std::move(conversation);
  params.enable_thinking =
      request.has_enable_thinking() ? request.enable_thinking() : facts.enable_thinking_default;
  return params;
}

absl::Status ValidateTokenize(const v1::TokenizeRequest& request) {
  if (absl::Status status = CheckModelName(request.model()); !status.ok()) return status;
  if (absl::Status status = CheckBytes("text", request.text(), 0, limits::kPromptBytesMax);
      !status.ok()) {
    return status;
  }
  return CheckUtf8("text", request.text());
}

absl::StatusOr<int32_t> MaxTokens(const GenerationParams& params, int64_t prompt_tokens,
                                  const ModelFacts& facts) {
  const int64_t room = facts.context_tokens - prompt_tokens;
  if (prompt_tokens < 1 || room < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt has ", prompt_tokens, " tokens; with the model's context of ",
                     facts.context_tokens, " tokens it must have 1..", facts.context_tokens - 1));
  }
  if (!params.max_tokens.has_value()) {
    return static_cast<int32_t>(std::min<int64_t>(room, kDefaultMaxTokens));
  }
  if (*params.max_tokens < 1 || *params.max_tokens > room) {
    return absl::InvalidArgumentError(absl::StrCat(
        "options.max_tokens is ", *params.max_tokens, "; after a prompt of ", prompt_tokens,
        " tokens in a context of ", facts.context_tokens, " tokens it must be 1..", room));
  }
  return *params.max_tokens;
}

}  // namespace ultraspeed::router
