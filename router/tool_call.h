// Tools of a conversation as the router keeps them: functions that the model may call, calls that
// it made, and what types JSON Schema gives their parameters. validation.h checks them,
// chat_template.h writes them into prompts, tool_call_parser.h reads the model's calls. Pure.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/grammar/argument_types.h"

namespace ultraspeed::router {

// The tokens around a call.
inline constexpr absl::string_view kToolCallBegin = "<tool_call>";
inline constexpr absl::string_view kToolCallEnd = "</tool_call>";

struct ToolFunction {
  std::string name;
  std::optional<std::string> description;
  std::string parameters;  // text of a JSON object (JSON Schema), or empty
  bool is_strict = false;  // its calls are held to them
};

struct ToolCallTurn {
  std::string id;  // may be empty
  std::string name;
  std::string arguments;  // text of a JSON object, or empty
};

// The functions that the model is told of, and how its answer has to begin.
struct ToolPrompt {
  std::vector<ToolFunction> functions;
  bool call_required = false;      // the prompt ends inside of a call
  std::string required_name = {};  // with call_required; empty: the model chooses

  bool any_strict() const {
    return std::any_of(functions.begin(), functions.end(),
                       [](const ToolFunction& one) { return one.is_strict; });
  }
};

using FunctionTypes = std::map<std::string, grammar::ArgumentTypesByName, std::less<>>;

// REQUIRES: `parameters` is the text of a JSON object, or empty.
grammar::ArgumentTypesByName ParameterTypesOf(absl::string_view parameters);

}  // namespace ultraspeed::router
