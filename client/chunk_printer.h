// What the chunks of one stream look like on standard output, and its statistics. Called by main's
// read loop. Thread contract: one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/status_line.h"
#include "ultraspeed/v1/inference.pb.h"

namespace ultraspeed::client {

enum class OutputForm { kText, kJson, kStreamJson };

absl::string_view TierText(v1::ServiceTier tier);

class ChunkPrinter {
 public:
  ChunkPrinter(OutputForm form, bool stats_json);

  void Print(const v1::GenerateChunk& chunk);
  // After the stream, whether it ended well or not. Statistics go to standard error, or as JSON to
  // standard output.
  void Finish();

  const std::string& text() const { return text_; }

 private:
  std::string StatsText() const;

  const OutputForm form_;
  const bool stats_json_;
  const absl::Time start_;
  std::optional<absl::Time> first_token_;
  std::string text_;
  std::vector<int32_t> token_ids_;
  std::vector<v1::TokenLogprob> logprobs_;
  v1::GenerateChunk last_;  // without text and tokens
  StatusLine status_line_;
};

}  // namespace ultraspeed::client
