#include "router/generation.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace ultraspeed::router {

Generation::Generation(v1::WorkerGenerateRequest request, int32_t vocabulary_size,
                       const ReasoningMarks& reasoning_marks)
    : request_(std::move(request)),
      vocabulary_size_(vocabulary_size),
      reasoning_(reasoning_marks, request_.prompt_token_ids()) {
  usage_.set_prompt_tokens(request_.prompt_token_ids_size());
  before_ = usage_;
}

absl::Status Generation::Check(const v1::WorkerGenerateChunk& chunk) const {
  const int64_t num_tokens = num_new_tokens() + chunk.token_ids_size();
  if (num_tokens > request_.max_tokens()) {
    return absl::InternalError(absl::StrCat(
        "worker sent ", num_tokens, " tokens, more than max_tokens=", request_.max_tokens()));
  }
  for (const int32_t id : chunk.token_ids()) {
    if (id >= 0 && id < vocabulary_size_) continue;
    return absl::InternalError(
        absl::StrCat("worker sent token id ", id, ", the vocabulary has ", vocabulary_size_));
  }
  if (request_.logprobs() >= 0 && chunk.logprobs_size() != chunk.token_ids_size()) {
    return absl::InternalError(absl::StrCat("worker sent ", chunk.logprobs_size(), " logprobs for ",
                                            chunk.token_ids_size(), " tokens"));
  }
  return absl::OkStatus();
}

void Generation::TakeCounts(const v1::Usage& worker_usage) {
  if (request_.resumed_tokens() == 0) usage_.set_cached_tokens(worker_usage.cached_tokens());
  usage_.set_draft_rounds(before_.draft_rounds() + worker_usage.draft_rounds());
}

void Generation::TakeToken(int32_t token_id) {
  usage_.set_completion_tokens(usage_.completion_tokens() + 1);
  reasoning_.Take(token_id);
  usage_.set_reasoning_tokens(reasoning_.num_tokens());
  new_token_ids_.Add(token_id);
}

bool Generation::Agrees(const v1::Usage& worker_usage) const {
  return worker_usage.completion_tokens() == num_new_tokens() &&
         worker_usage.prompt_tokens() == request_.prompt_token_ids_size();
}

void Generation::Resume() {
  request_.set_max_tokens(request_.max_tokens() - new_token_ids_.size());
  request_.set_resumed_tokens(request_.resumed_tokens() + new_token_ids_.size());
  request_.mutable_prompt_token_ids()->MergeFrom(new_token_ids_);
  new_token_ids_.Clear();
  before_ = usage_;
}

}  // namespace ultraspeed::router
