// One call of a tool, from the text between <tool_call> and </tool_call> to a name and a JSON
// object of arguments, piece by piece as the text comes:
//
//   <function=NAME>
//   <parameter=KEY>VALUE</parameter>
//   </function>
//
// Source: MiMo-V2's chat template. Owned by AnswerText, one per call; pure. Pieces do not depend on
// how the text was cut, once joined.
//
// Surprising:
//   * Values are taken as they are, white space included. </parameter> ends a value only if another
//     parameter, </function> or the end follows; elsewhere it is part of the value.
//   * Between parameters everything else is passed over.
//   * Text that does not begin with a function is no call, and comes back as text.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "router/tool_call.h"

namespace ultraspeed::router {

// Thread contract: one thread at a time.
class ToolCallParser {
 public:
  struct Piece {
    std::string name;       // of the call; once, before any arguments
    std::string arguments;  // more of the object's text
    std::string text;       // of what turned out to be no call, from the mark on
  };

  // `types` of the functions that there are; outlives the parser. `mark`: what stands before a body
  // that is no call when it comes back as text.
  ToolCallParser(const FunctionTypes* types, absl::string_view mark) : types_(types), mark_(mark) {}

  Piece Append(absl::string_view text);
  // The body is over: what was begun is closed, so that the arguments are a JSON object.
  Piece Finish();
  bool is_call() const { return state_ != State::kBeforeName && state_ != State::kNoCall; }
  // Inside of a value, whatever comes next is part of it.
  bool is_in_value() const;
  // Nothing but white space has come.
  bool is_blank() const;

 private:
  enum class State { kBeforeName, kNoCall, kBetween, kValue, kAfter };

  // One step of Append: true if something of held_ was used up and there may be more to do.
  bool Step(Piece* piece);
  void AppendNoCall(Piece* piece);
  bool ReadName(Piece* piece);
  bool ReadBetween(Piece* piece);
  bool ReadValue(Piece* piece);
  void BeginValue(absl::string_view key, Piece* piece);
  void AppendValue(absl::string_view text, Piece* piece);
  void EndValue(Piece* piece);
  void EndFunction(Piece* piece);

  const FunctionTypes* const types_;
  std::string mark_;  // until it came back
  const grammar::ArgumentTypesByName* parameters_ =
      nullptr;  // of the function; null: not one of those
  State state_ = State::kBeforeName;
  std::string held_;  // not decided yet
  bool has_arguments_ = false;
  grammar::JsonTypes value_types_ = grammar::kJsonAny;
  std::string value_;  // so far, unless it is passed on as it comes
};

}  // namespace ultraspeed::router
