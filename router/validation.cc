#include "router/validation.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "router/unicode.h"

namespace ultraspeed::router {
namespace {

template <typename Value>
absl::Status OutOfBounds(absl::string_view field, Value value, absl::string_view bound) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; it must be ", bound));
}

template <typename Value>
absl::Status CheckRange(absl::string_view field, Value value, Value low, Value high) {
  if (value >= low && value <= high) return absl::OkStatus();  // false for NaN
  return OutOfBounds(field, value, absl::StrCat(low, "..", high));
}

absl::Status CheckBytes(absl::string_view field, absl::string_view value, size_t low, size_t high) {
  if (value.size() >= low && value.size() <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " has ", value.size(), " bytes; it must have ", low, "..", high));
}

absl::Status CheckUtf8(absl::string_view field, absl::string_view value) {
  const size_t offset = FirstInvalidByte(value);
  if (offset == value.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " is not UTF-8 at byte ", offset));
}

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
  return params;
}

absl::Status CheckModelName(const std::string& model) {
  return CheckBytes("model", model, 1, limits::kModelNameBytesMax);
}

absl::StatusOr<ChatRole> RoleOf(const v1::ChatMessage& message, absl::string_view field) {
  switch (message.role()) {
    case v1::ROLE_SYSTEM:
      return ChatRole::kSystem;
    case v1::ROLE_USER:
      return ChatRole::kUser;
    case v1::ROLE_ASSISTANT:
      return ChatRole::kAssistant;
    case v1::ROLE_TOOL:
      return ChatRole::kTool;
    default:
      return OutOfBounds(absl::StrCat(field, ".role"), static_cast<int>(message.role()),
                         "1..4 (system, user, assistant, tool)");
  }
}

absl::StatusOr<ChatTurn> ValidateMessage(const v1::ChatMessage& message, absl::string_view field) {
  const absl::StatusOr<ChatRole> role = RoleOf(message, field);
  if (!role.ok()) return role.status();
  if (*role != ChatRole::kAssistant && !message.reasoning_content().empty()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".reasoning_content has ",
                                                   message.reasoning_content().size(),
                                                   " bytes; only assistant messages may have any"));
  }
  if (*role == ChatRole::kUser && message.content().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".content has 0 bytes; a user message must have at least 1"));
  }
  if (absl::Status status = CheckUtf8(absl::StrCat(field, ".content"), message.content());
      !status.ok())
    return status;
  if (absl::Status status =
          CheckUtf8(absl::StrCat(field, ".reasoning_content"), message.reasoning_content());
      !status.ok()) {
    return status;
  }
  return ChatTurn{*role, message.content(), message.reasoning_content()};
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
  const int num_messages = request.messages_size();
  if (num_messages < 1 || num_messages > limits::kMessagesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "messages has ", num_messages, " entries; it must have 1..", limits::kMessagesMax));
  }
  size_t num_bytes = 0;
  for (const v1::ChatMessage& message : request.messages()) {
    num_bytes += message.content().size() + message.reasoning_content().size();
  }
  if (num_bytes > limits::kPromptBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("messages have ", num_bytes,
                                                   " bytes together; they must have 0..",
                                                   limits::kPromptBytesMax));
  }
  ChatParams params;
  for (int i = 0; i < num_messages; ++i) {
    absl::StatusOr<ChatTurn> turn =
        ValidateMessage(request.messages(i), absl::StrCat("messages[", i, "]"));
    if (!turn.ok()) return turn.status();
    params.turns.push_back(*std::move(turn));
  }
  const ChatRole last = params.turns.back().role;
  if (last != ChatRole::kUser && last != ChatRole::kTool) {
    return OutOfBounds(absl::StrCat("messages[", num_messages - 1, "].role"),
                       static_cast<int>(request.messages(num_messages - 1).role()),
                       "2 (user) or 4 (tool) in the last message");
  }
  absl::StatusOr<GenerationParams> generation = ValidateOptions(request.options(), facts);
  if (!generation.ok()) return generation.status();
  params.generation = *std::move(generation);
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
