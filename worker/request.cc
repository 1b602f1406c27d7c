#include "worker/request.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "kernels/check.h"

namespace ultraspeed::worker {
namespace {

template <typename Value, typename Bound>
absl::Status OutOfBounds(const char* field, Value value, Bound min, Bound max) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, "=", value, ": must be in ", min, "..", max));
}

absl::Status ValidatePrompt(const std::vector<int32_t>& prompt, const RequestBounds& bounds) {
  const int64_t count = static_cast<int64_t>(prompt.size());
  if (count < 1 || count > bounds.context_tokens - 1) {
    return absl::InvalidArgumentError(absl::StrCat("prompt_token_ids: ", count, " ids; must be 1..",
                                                   bounds.context_tokens - 1, " (context of ",
                                                   bounds.context_tokens, " tokens less one)"));
  }
  for (int64_t i = 0; i < count; ++i) {
    if (prompt[i] < 0 || prompt[i] >= bounds.vocabulary) {
      return absl::InvalidArgumentError(absl::StrCat("prompt_token_ids[", i, "]=", prompt[i],
                                                     ": must be in 0..", bounds.vocabulary - 1));
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateStops(const std::vector<int32_t>& stops, int vocabulary) {
  if (stops.size() > static_cast<size_t>(limits::kStopTokenIdsMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat("stop_token_ids: ", stops.size(), " ids; at most ", limits::kStopTokenIdsMax));
  }
  for (size_t i = 0; i < stops.size(); ++i) {
    if (stops[i] < 0 || stops[i] >= vocabulary) {
      return absl::InvalidArgumentError(
          absl::StrCat("stop_token_ids[", i, "]=", stops[i], ": must be in 0..", vocabulary - 1));
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateSampling(const kernels::SamplingSpec& sampling, int vocabulary) {
  // Written so that NaN fails.
  if (!(sampling.temperature >= 0.0f && sampling.temperature <= limits::kTemperatureMax)) {
    return OutOfBounds("temperature", sampling.temperature, 0,
                       static_cast<int>(limits::kTemperatureMax));
  }
  if (!(sampling.top_p > 0.0f && sampling.top_p <= 1.0f)) {
    return absl::InvalidArgumentError(
        absl::StrCat("top_p=", sampling.top_p, ": must be in (0, 1]"));
  }
  if (sampling.top_k < 0 || sampling.top_k > vocabulary)
    return OutOfBounds("top_k", sampling.top_k, 0, vocabulary);
  return absl::OkStatus();
}

bool IsRequestIdCharacter(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
         c == '_' || c == '.';
}

absl::Status ValidateId(const std::string& id) {
  if (id.empty() || id.size() > limits::kRequestIdBytesMax ||
      !std::all_of(id.begin(), id.end(), IsRequestIdCharacter)) {
    return absl::InvalidArgumentError(absl::StrCat("request_id: ", id.size(), " bytes; must be 1..",
                                                   limits::kRequestIdBytesMax,
                                                   " letters, digits, '-', '_' or '.'"));
  }
  return absl::OkStatus();
}

// As it is behind the prompt; null: none. REQUIRES: begun and resumed tokens are in the prompt.
std::unique_ptr<OutputConstraint> ConstraintOf(const RequestSpec& spec) {
  if (spec.output.constraint == nullptr) return nullptr;
  auto constraint = std::make_unique<OutputConstraint>(spec.output);
  for (size_t i = spec.prompt.size() - static_cast<size_t>(spec.begun_tokens + spec.resumed_tokens);
       i < spec.prompt.size(); ++i) {
    constraint->Commit(spec.prompt[i]);
  }
  return constraint;
}

}  // namespace

absl::Status ValidateRequest(const RequestSpec& spec, const RequestBounds& bounds) {
  if (absl::Status status = ValidateId(spec.id); !status.ok()) return status;
  if (absl::Status status = ValidatePrompt(spec.prompt, bounds); !status.ok()) return status;
  const int64_t prompt_tokens = static_cast<int64_t>(spec.prompt.size());
  if (spec.max_tokens < 1 || spec.max_tokens > bounds.context_tokens - prompt_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_tokens=", spec.max_tokens, ": must be in 1..", bounds.context_tokens - prompt_tokens,
        " (context of ", bounds.context_tokens, " tokens less prompt of ", prompt_tokens, ")"));
  }
  if (absl::Status status = ValidateSampling(spec.sampling, bounds.vocabulary); !status.ok())
    return status;
  if (absl::Status status = ValidateStops(spec.stop_token_ids, bounds.vocabulary); !status.ok())
    return status;
  if (spec.logprobs < -1 || spec.logprobs > limits::kLogprobsMax)
    return OutOfBounds("logprobs", spec.logprobs, -1, limits::kLogprobsMax);
  if (spec.priority < limits::kPriorityMin || spec.priority > limits::kPriorityMax) {
    return OutOfBounds("priority", spec.priority, limits::kPriorityMin, limits::kPriorityMax);
  }
  if (spec.cache_scope.size() > limits::kCacheScopeBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("cache_scope: ", spec.cache_scope.size(),
                                                   " bytes; must be at most ",
                                                   limits::kCacheScopeBytesMax));
  }
  if (spec.resumed_tokens < 0 || spec.resumed_tokens >= prompt_tokens) {
    return OutOfBounds("resumed_tokens", spec.resumed_tokens, int64_t{0}, prompt_tokens - 1);
  }
  if (spec.begun_tokens < 0 || spec.begun_tokens > prompt_tokens - spec.resumed_tokens) {
    return OutOfBounds("tool_calls.begun_tokens", spec.begun_tokens, int64_t{0},
                       prompt_tokens - spec.resumed_tokens);
  }
  const std::unique_ptr<OutputConstraint> constraint = ConstraintOf(spec);
  if (constraint != nullptr && constraint->is_dead()) {
    return absl::InvalidArgumentError(
        absl::StrCat("resumed_tokens=", spec.resumed_tokens, ": these last tokens of the prompt",
                     spec.begun_tokens == 0 ? "" : ", behind those of a call that has begun,",
                     " are not of the output format"));
  }
  return absl::OkStatus();
}

Sequence::Sequence(RequestSpec spec, std::shared_ptr<TokenSink> sink, absl::Duration submitted_at)
    : spec_(std::move(spec)),
      sink_(std::move(sink)),
      submitted_at_(submitted_at),
      max_(static_cast<int64_t>(spec_.prompt.size()) + spec_.max_tokens),
      constraint_(ConstraintOf(spec_)) {
  tokens_.reserve(static_cast<size_t>(max_));
  tokens_ = spec_.prompt;
  tokens_.reserve(static_cast<size_t>(max_));
  CheckOrder();
}

void Sequence::StartAt(int64_t num_tokens) {
  KERNELS_CHECK(computed_, ==, int64_t{0});
  KERNELS_CHECK(num_tokens, <, prompt_tokens());
  cached_ = computed_ = num_tokens;
  CheckOrder();
}

TokenEvent Sequence::Advance(int num_tokens, SequenceResult result) {
  KERNELS_CHECK(num_tokens, >=, 1);
  KERNELS_CHECK(num_tokens, <=, pending());
  computed_ += num_tokens;
  TokenEvent event;
  if (!result.chosen.empty()) {
    KERNELS_CHECK(pending(), ==, 0);  // only the newest token's successor can be chosen
    ++draft_rounds_;
    // The accepted drafts have KV, the last chosen token has not: it is the next anchor.
    computed_ += static_cast<int64_t>(result.chosen.size()) - 1;
    for (ChosenToken& chosen : result.chosen) {
      const int32_t token = chosen.token;
      tokens_.push_back(token);
      if (constraint_ != nullptr) constraint_->Commit(token);
      event.tokens.push_back(std::move(chosen));
      if (std::find(spec_.stop_token_ids.begin(), spec_.stop_token_ids.end(), token) !=
          spec_.stop_token_ids.end()) {
        event.finish = FinishReason::kStop;
        event.stop_token = token;
        break;
      }
      if (committed() == max_) {
        event.finish = FinishReason::kLength;
        break;
      }
    }
    computed_ = std::min(
        computed_, committed() - 1);  // tokens after a stop are dropped, and their KV with them
  }
  CheckOrder();
  event.usage = usage();
  return event;
}

TokenEvent Sequence::End(FinishReason reason) const {
  TokenEvent event;
  event.usage = usage();
  event.finish = reason;
  return event;
}

UsageCounts Sequence::usage() const {
  return {.prompt_tokens = prompt_tokens(),
          .cached_tokens = cached_,
          .completion_tokens = committed() - prompt_tokens(),
          .draft_rounds = draft_rounds_};
}

void Sequence::CheckOrder() const {
  KERNELS_CHECK(cached_, <=, computed_);
  KERNELS_CHECK(computed_, <=, committed());
  KERNELS_CHECK(committed(), <=, max_);
}

}  // namespace ultraspeed::worker
