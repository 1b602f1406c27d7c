// Requests from outside to plain parameters: every field checked against its bound, every refusal
// naming field, value and bound.
//
// Called by the services before any work is done for a request; pure functions. Bounds that need
// the prompt's token count come second: ValidateGenerate/ValidateChat -> tokenizer -> MaxTokens.
// Not here: whether the model exists (the service knows workers), whether the tenant may use the
// tier, and the default seed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "router/conversation.h"
#include "ultraspeed/v1/inference.pb.h"

namespace ultraspeed::router {

// What max_tokens becomes when a request names none and the context has more room than this.
inline constexpr int32_t kDefaultMaxTokens = 131072;

// What a worker's ModelInfo says that bounds and defaults depend on.
struct ModelFacts {
  std::string name;
  int64_t context_tokens = 0;   // prompt + completion
  int32_t vocabulary_size = 0;  // V
  float default_temperature = 1;
  float default_top_p = 1;
  bool enable_thinking_default = true;
};

struct GenerationParams {
  std::optional<int32_t> max_tokens;  // as asked; MaxTokens() makes it final
  float temperature = 1;
  int32_t top_k = 0;  // 0 = off
  float top_p = 1;
  std::optional<uint64_t> seed;  // absent: the service draws one
  std::vector<std::string> stop;
  v1::ServiceTier service_tier = v1::SERVICE_TIER_AUTO;  // never UNSPECIFIED
  int32_t logprobs = -1;                                 // -1 = none
  bool speculation = true;
  bool ignore_eos = false;
  std::string client_request_id;
  int32_t priority = 0;
  std::optional<v1::OutputFormat> output_format;
};

struct ChatParams {
  GenerationParams generation;
  Conversation conversation;
  bool enable_thinking = true;
};

absl::StatusOr<GenerationParams> ValidateGenerate(const v1::GenerateRequest& request,
                                                  const ModelFacts& facts);
absl::StatusOr<ChatParams> ValidateChat(const v1::ChatRequest& request, const ModelFacts& facts);
absl::Status ValidateTokenize(const v1::TokenizeRequest& request);

// The final max_tokens of a prompt of this many tokens: what was asked, or the rest of the context
// capped by the server's bound. INVALID_ARGUMENT if the prompt leaves no room for one token or if
// more was asked than fits.
absl::StatusOr<int32_t> MaxTokens(const GenerationParams& params, int64_t prompt_tokens,
                                  const ModelFacts& facts);

}  // namespace ultraspeed::router
