// From what a request says of its output, a format or strict tools, to a grammar. Thread: any.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/grammar/constraint_cache.h"
#include "ultraspeed/v1/worker.pb.h"
#include "worker/output_constraint.h"

namespace ultraspeed::worker {

class OutputFormats {
 public:
  // Of the tokens that may be sampled. A tokenizer that is not byte-level is no reason not to
  // serve: who asks for a format is refused then.
  OutputFormats(absl::string_view tokenizer_json, int num_tokens,
                const std::vector<int32_t>& end_tokens);

  // Nothing if the request has no format. INVALID_ARGUMENT names the field of worker.proto.
  absl::StatusOr<OutputGrammar> GrammarOf(const v1::WorkerGenerateRequest& request);

 private:
  absl::StatusOr<OutputGrammar> GrammarOf(const v1::ToolCallFormat& calls);
  // INVALID_ARGUMENT: not 0..V-1, or it ends a text.
  absl::Status CheckMark(absl::string_view field, int32_t token) const;

  const int num_tokens_;
  const std::vector<int32_t> end_tokens_;
  absl::Status usable_;
  std::shared_ptr<const grammar::TokenMask> no_end_;  // all tokens but those that end a text
  std::unique_ptr<grammar::ConstraintCache> constraints_;
};

}  // namespace ultraspeed::worker
