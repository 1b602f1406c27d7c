// The answer of one request from token ids to what a caller reads: text, calls of tools, and where
// it ends. Owned by StreamRelay, one per request, over all placements; pure.
//
// Surprising: a call begins and ends at the tokens <tool_call> and </tool_call>, not at their
// spelling, and never inside of a thought or a parameter's value. Stop strings are looked for in
// the text only. White space behind a call is text only if other text follows.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "router/detokenizer.h"
#include "router/stop_matcher.h"
#include "router/tokenizer.h"
#include "router/tool_call.h"
#include "router/tool_call_parser.h"
#include "ultraspeed/v1/inference.pb.h"

namespace ultraspeed::router {

// How to read calls; of a chat whose model was told of tools.
struct ToolUse {
  FunctionTypes types;
  bool parallel_calls = true;  // false: the answer ends with its first call
  // The prompt ends inside of a call, with this of its body.
  std::optional<std::string> opening = {};
};

// Thread contract: one thread at a time.
class AnswerText {
 public:
  // `tokenizer` outlives it. `request_id` makes the calls' ids unique. `opening`: the end of the
  // prompt, where that is the beginning of the text.
  AnswerText(const Tokenizer* tokenizer, std::vector<std::string> stop,
             std::optional<ToolUse> tools, absl::string_view request_id, std::string opening = {});
  AnswerText(const AnswerText&) = delete;
  AnswerText& operator=(const AnswerText&) = delete;

  // Adds to `chunk` what the token says. True if it ended the answer, which set finish_reason. Not
  // for the token that a worker ended at. `in_thought`: of the text behind this token.
  bool Append(int32_t token_id, bool in_thought, v1::GenerateChunk* chunk);
  // The worker ended it. What was held back leaves, unless it turns out to complete a stop string.
  // `stop_token_id`: with STOP.
  void Finish(v1::FinishReason reason, int32_t stop_token_id, v1::GenerateChunk* chunk);

 private:
  // All of them: true if that ended the answer.
  bool AppendOpenings(v1::GenerateChunk* chunk);
  bool AppendText(absl::string_view text, v1::GenerateChunk* chunk);
  bool AppendPiece(const ToolCallParser::Piece& piece, v1::GenerateChunk* chunk);
  bool BeginCall(v1::GenerateChunk* chunk);
  // `mark`: what ended it, as text.
  bool EndCall(absl::string_view mark, v1::GenerateChunk* chunk);
  void SetFinishReason(v1::FinishReason reason, v1::GenerateChunk* chunk) const;

  const Tokenizer* const tokenizer_;
  const std::vector<std::string> stop_;
  std::optional<ToolUse> tools_;  // its opening until that was read
  std::string opening_;           // likewise
  const std::string call_id_prefix_;
  int32_t call_begin_ = -1;  // token ids; -1: calls are text
  int32_t call_end_ = -1;
  Detokenizer detokenizer_;
  std::optional<StopMatcher> stop_matcher_;
  std::optional<ToolCallParser> call_;  // open
  int num_calls_ = 0;                   // whose name has come
  bool is_behind_call_ = false;         // nothing but white space came since
  std::string gap_;                     // that white space
};

}  // namespace ultraspeed::router
