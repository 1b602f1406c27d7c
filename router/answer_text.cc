#include "router/answer_text.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace ultraspeed::router {

AnswerText::AnswerText(const Tokenizer* tokenizer, std::vector<std::string> stop,
                       std::optional<ToolUse> tools, absl::string_view request_id,
                       std::string opening)
    : tokenizer_(tokenizer),
      stop_(std::move(stop)),
      tools_(std::move(tools)),
      opening_(std::move(opening)),
      // Clients keep up to 40 characters: these, and three digits.
      call_id_prefix_(absl::StrCat("call_", absl::StrReplaceAll(request_id, {{"-", ""}}))),
      detokenizer_(tokenizer),
      stop_matcher_(stop_) {
  if (!tools_) return;
  call_begin_ = tokenizer->TokenId(kToolCallBegin).value_or(-1);
  call_end_ = tokenizer->TokenId(kToolCallEnd).value_or(-1);
  if (tools_->opening) call_.emplace(&tools_->types, "");
}

bool AnswerText::Append(int32_t token_id, bool in_thought, v1::GenerateChunk* chunk) {
  if (AppendOpenings(chunk)) return true;
  const bool is_mark = token_id == call_begin_ || token_id == call_end_;
  if (is_mark && !(call_ ? call_->is_in_value() : in_thought)) {
    if (token_id == call_end_ && call_) return EndCall(kToolCallEnd, chunk);
    if (token_id == call_begin_) return BeginCall(chunk);
  }
  const std::string text = detokenizer_.Append({&token_id, 1});
  return call_ ? AppendPiece(call_->Append(text), chunk) : AppendText(text, chunk);
}

void AnswerText::Finish(v1::FinishReason reason, int32_t stop_token_id, v1::GenerateChunk* chunk) {
  if (AppendOpenings(chunk)) return;
  const std::string rest = detokenizer_.Finish();
  if (call_) {
    if (AppendPiece(call_->Append(rest), chunk)) return;
    // What max_tokens cut is left open.
    const bool is_cut = reason != v1::FINISH_REASON_STOP && call_->is_call();
    if (!is_cut && AppendPiece(call_->Finish(), chunk)) return;
  } else if (AppendText(rest, chunk)) {
    return;
  }
  chunk->mutable_text()->append(stop_matcher_->Finish());
  SetFinishReason(reason, chunk);
  if (reason == v1::FINISH_REASON_STOP) {
    chunk->set_matched_stop(std::string(tokenizer_->TokenBytes(stop_token_id)));
  }
}

bool AnswerText::AppendOpenings(v1::GenerateChunk* chunk) {
  if (!opening_.empty() && AppendText(std::exchange(opening_, {}), chunk)) return true;
  if (!call_ || !tools_->opening) return false;
  const std::string opening = *std::exchange(tools_->opening, std::nullopt);
  return AppendPiece(call_->Append(opening), chunk);
}

bool AnswerText::AppendText(absl::string_view text, v1::GenerateChunk* chunk) {
  std::string gap_and_text;
  if (is_behind_call_) {
    absl::StrAppend(&gap_, text);
    if (absl::StripAsciiWhitespace(gap_).empty()) return false;
    is_behind_call_ = false;
    gap_and_text = std::exchange(gap_, {});
    text = gap_and_text;
  }
  const StopMatcher::Result result = stop_matcher_->Append(text);
  chunk->mutable_text()->append(result.text);
  if (!result.matched) return false;
  SetFinishReason(v1::FINISH_REASON_STOP, chunk);
  chunk->set_matched_stop(result.stop);
  return true;
}

bool AnswerText::AppendPiece(const ToolCallParser::Piece& piece, v1::GenerateChunk* chunk) {
  if (!piece.text.empty()) return AppendText(piece.text, chunk);
  const bool is_new = !piece.name.empty();
  if (is_new) ++num_calls_;
  if (!is_new && piece.arguments.empty()) return false;
  const int index = num_calls_ - 1;
  const int num_deltas = chunk->tool_calls_size();
  v1::ToolCallDelta* delta = num_deltas > 0 && chunk->tool_calls(num_deltas - 1).index() == index
                                 ? chunk->mutable_tool_calls(num_deltas - 1)
                                 : chunk->add_tool_calls();
  delta->set_index(index);
  if (is_new) {
    delta->set_id(absl::StrCat(call_id_prefix_, index));
    delta->set_name(piece.name);
  }
  delta->mutable_arguments()->append(piece.arguments);
  return false;
}

bool AnswerText::BeginCall(v1::GenerateChunk* chunk) {
  if (call_ && call_->is_blank()) return false;  // said twice, or after the prompt did
  if (call_ && EndCall("", chunk)) return true;  // its own end was forgotten
  if (AppendText(detokenizer_.Finish(), chunk)) return true;
  chunk->mutable_text()->append(stop_matcher_->Finish());
  stop_matcher_.emplace(stop_);  // no stop string goes on behind a call
  gap_.clear();
  call_.emplace(&tools_->types, kToolCallBegin);
  return false;
}

bool AnswerText::EndCall(absl::string_view mark, v1::GenerateChunk* chunk) {
  if (AppendPiece(call_->Append(detokenizer_.Finish()), chunk)) return true;
  if (AppendPiece(call_->Finish(), chunk)) return true;
  const bool is_call = call_->is_call();
  call_.reset();
  if (!is_call) return AppendText(mark, chunk);
  is_behind_call_ = true;
  if (tools_->parallel_calls) return false;
  SetFinishReason(v1::FINISH_REASON_STOP, chunk);
  return true;
}

void AnswerText::SetFinishReason(v1::FinishReason reason, v1::GenerateChunk* chunk) const {
  const bool are_calls = reason == v1::FINISH_REASON_STOP && num_calls_ > 0;
  chunk->set_finish_reason(are_calls ? v1::FINISH_REASON_TOOL_CALLS : reason);
}

}  // namespace ultraspeed::router
