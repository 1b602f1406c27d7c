#include "router/tool_call_parser.h"

#include <algorithm>
#include <boost/json.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/grammar/tool_calls.h"
#include "common/limits.h"
#include "router/partial_match.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

using grammar::kFunctionBegin;
using grammar::kFunctionEnd;
using grammar::kParameterBegin;
using grammar::kParameterEnd;

std::string Quoted(absl::string_view text) {
  return json::serialize(json::string_view(text.data(), text.size()));
}

// The same without its quotes.
std::string Escaped(absl::string_view text) {
  const std::string quoted = Quoted(text);
  return quoted.substr(1, quoted.size() - 2);
}

enum class Match { kNo, kMaybe, kYes };

Match Matches(absl::string_view text, absl::string_view mark) {
  if (absl::StartsWith(text, mark)) return Match::kYes;
  return absl::StartsWith(mark, text) ? Match::kMaybe : Match::kNo;
}

// Whether what stands behind a </parameter> says that it ended a value.
Match EndsValue(absl::string_view rest) {
  rest = absl::StripLeadingAsciiWhitespace(rest);
  return std::max(Matches(rest, kParameterBegin), Matches(rest, kFunctionEnd));
}

}  // namespace

ToolCallParser::Piece ToolCallParser::Append(absl::string_view text) {
  Piece piece;
  absl::StrAppend(&held_, text);
  while (Step(&piece)) continue;
  return piece;
}

ToolCallParser::Piece ToolCallParser::Finish() {
  Piece piece;
  switch (state_) {
    case State::kBeforeName:
    case State::kNoCall:
      AppendNoCall(&piece);
      break;
    case State::kValue: {
      // Only an undecided </parameter>, or the beginning of one, is still held.
      const size_t end = held_.find(kParameterEnd.data(), 0, kParameterEnd.size());
      AppendValue(absl::string_view(held_).substr(0, end), &piece);
      EndValue(&piece);
      EndFunction(&piece);
      break;
    }
    case State::kBetween:
      EndFunction(&piece);
      break;
    case State::kAfter:
      break;
  }
  return piece;
}

bool ToolCallParser::is_in_value() const {
  return state_ == State::kValue && !absl::StartsWith(held_, kParameterEnd);
}

bool ToolCallParser::is_blank() const {
  return state_ == State::kBeforeName && absl::StripAsciiWhitespace(held_).empty();
}

bool ToolCallParser::Step(Piece* piece) {
  switch (state_) {
    case State::kBeforeName:
      return ReadName(piece);
    case State::kNoCall:
      AppendNoCall(piece);
      return false;
    case State::kBetween:
      return ReadBetween(piece);
    case State::kValue:
      return ReadValue(piece);
    case State::kAfter:
      held_.clear();
      return false;
  }
  return false;
}

void ToolCallParser::AppendNoCall(Piece* piece) {
  state_ = State::kNoCall;
  absl::StrAppend(&piece->text, std::exchange(mark_, {}), std::exchange(held_, {}));
}

bool ToolCallParser::ReadName(Piece* piece) {
  const absl::string_view text = absl::StripLeadingAsciiWhitespace(held_);
  const Match begins = Matches(text, kFunctionBegin);
  if (begins == Match::kMaybe) return false;
  const absl::string_view name =
      begins == Match::kYes ? text.substr(kFunctionBegin.size()) : absl::string_view();
  const size_t end = name.find_first_of("><\n");
  const bool may_come = begins == Match::kYes && end == absl::string_view::npos &&
                        name.size() <= limits::kToolNameBytesMax;
  if (may_come) return false;
  if (end == absl::string_view::npos || end == 0 || name[end] != '>') {
    state_ = State::kNoCall;
    return true;
  }
  piece->name = std::string(name.substr(0, end));
  const auto function = types_->find(piece->name);
  if (function != types_->end()) parameters_ = &function->second;
  state_ = State::kBetween;
  held_ = std::string(name.substr(end + 1));
  return true;
}

bool ToolCallParser::ReadBetween(Piece* piece) {
  const absl::string_view text = held_;
  const size_t parameter = text.find(kParameterBegin);
  const size_t function_end = text.find(kFunctionEnd);
  if (function_end < parameter) {
    EndFunction(piece);
    return true;
  }
  if (parameter == absl::string_view::npos) {
    const size_t held_bytes =
        std::max(BegunBytes(text, kParameterBegin), BegunBytes(text, kFunctionEnd));
    held_ = std::string(text.substr(text.size() - held_bytes));
    return false;
  }
  const absl::string_view key = text.substr(parameter + kParameterBegin.size());
  const size_t end = key.find('>');
  if (end == absl::string_view::npos) return false;
  BeginValue(key.substr(0, end), piece);
  held_ = std::string(key.substr(end + 1));
  return true;
}

bool ToolCallParser::ReadValue(Piece* piece) {
  const absl::string_view text = held_;
  const size_t end = text.find(kParameterEnd);
  if (end == absl::string_view::npos) {
    const size_t used_bytes = text.size() - BegunBytes(text, kParameterEnd);
    AppendValue(text.substr(0, used_bytes), piece);
    held_.erase(0, used_bytes);
    return false;
  }
  const Match ends = EndsValue(text.substr(end + kParameterEnd.size()));
  const size_t value_bytes = ends == Match::kNo ? end + kParameterEnd.size() : end;
  AppendValue(text.substr(0, value_bytes), piece);
  held_.erase(0, value_bytes);
  if (ends == Match::kMaybe) return false;
  if (ends == Match::kYes) EndValue(piece);
  return true;
}

void ToolCallParser::BeginValue(absl::string_view key, Piece* piece) {
  absl::StrAppend(&piece->arguments, has_arguments_ ? "," : "{", Quoted(key), ":");
  has_arguments_ = true;
  value_types_ = grammar::kJsonAny;
  if (parameters_ != nullptr) {
    const auto parameter = parameters_->find(key);
    if (parameter != parameters_->end()) value_types_ = parameter->second.types;
  }
  if (value_types_ == grammar::kJsonString) absl::StrAppend(&piece->arguments, "\"");
  state_ = State::kValue;
}

void ToolCallParser::AppendValue(absl::string_view text, Piece* piece) {
  if (value_types_ == grammar::kJsonString) {
    absl::StrAppend(&piece->arguments, Escaped(text));
  } else {
    absl::StrAppend(&value_, text);
  }
}

void ToolCallParser::EndValue(Piece* piece) {
  state_ = State::kBetween;
  if (value_types_ == grammar::kJsonString) {
    absl::StrAppend(&piece->arguments, "\"");
    return;
  }
  const std::string value = std::exchange(value_, {});
  const auto json = grammar::JsonOfArgument(value, value_types_);
  absl::StrAppend(&piece->arguments, json ? std::string(*json) : Quoted(value));
}

void ToolCallParser::EndFunction(Piece* piece) {
  absl::StrAppend(&piece->arguments, has_arguments_ ? "}" : "{}");
  state_ = State::kAfter;
}

}  // namespace ultraspeed::router
