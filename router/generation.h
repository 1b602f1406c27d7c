// One request's generation across its placements: which tokens have come, what they cost, and what
// to ask the next worker if this one fails. A seeded text is a function of model, prompt,
// parameters and seed (worker.proto), so a worker that gets the prompt and the tokens so far goes
// on exactly where the last one stopped. Thoughts are counted here, as a worker knows no text.
// Owned by StreamRelay; pure.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "router/reasoning_counter.h"
#include "ultraspeed/v1/worker.pb.h"

namespace ultraspeed::router {

// Thread contract: one thread at a time.
class Generation {
 public:
  Generation() = default;
  // `request` is for the first placement: resumed_tokens is 0, max_tokens >= 1.
  Generation(v1::WorkerGenerateRequest request, int32_t vocabulary_size,
             const ReasoningMarks& reasoning_marks);

  // For the placement that runs, or the next one: prompt, then every token of the placements
  // before.
  const v1::WorkerGenerateRequest& request() const { return request_; }
  // Cumulative over all placements, of what was taken. cached_tokens: of the first.
  const v1::Usage& usage() const { return usage_; }
  bool has_tokens() const { return usage_.completion_tokens() > 0; }
  // Whether the last token left a thought open.
  bool is_thinking() const { return reasoning_.is_thinking(); }
  bool placement_has_tokens() const { return num_new_tokens() > 0; }

  // INTERNAL: what no worker may send; names value and bound.
  absl::Status Check(const v1::WorkerGenerateChunk& chunk) const;
  // Of a chunk that passed Check: the running counts, then its tokens one by one; those behind a
  // stop string are not taken.
  void TakeCounts(const v1::Usage& worker_usage);
  void TakeToken(int32_t token_id);
  // Whether a terminal record counts what was taken.
  bool Agrees(const v1::Usage& worker_usage) const;

  // Every token that was asked for has come: there is nothing to go on with.
  bool is_complete() const { return num_new_tokens() == request_.max_tokens(); }
  // The running placement is over; request() is for another worker now. REQUIRES: !is_complete().
  void Resume();

 private:
  int64_t num_new_tokens() const { return usage_.completion_tokens() - request_.resumed_tokens(); }

  v1::WorkerGenerateRequest request_;
  int32_t vocabulary_size_ = 0;
  ReasoningCounter reasoning_;  // over all placements
  v1::Usage usage_;
  v1::Usage before_;  // usage_ when the running placement began
  google::protobuf::RepeatedField<int32_t> new_token_ids_;  // of the running placement
};

}  // namespace ultraspeed::router
