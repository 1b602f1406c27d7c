// Tools of a conversation as the router keeps them: functions that the model may call, calls that
// it made, and what types JSON Schema gives their parameters. validation.h checks them,
// chat_template.h writes them into prompts, tool_call_parser.h reads the model's calls. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ultraspeed::router {

// The tokens around a call.
inline constexpr absl::string_view kToolCallBegin = "<tool_call>";
inline constexpr absl::string_view kToolCallEnd = "</tool_call>";

struct ToolFunction {
  std::string name;
  std::optional<std::string> description;
  std::string parameters;  // text of a JSON object (JSON Schema), or empty
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
};

// Types of JSON values; a set of them is their sum.
enum JsonType : uint8_t {
  kJsonNull = 1,
  kJsonBoolean = 2,
  kJsonNumber = 4,
  kJsonString = 8,
  kJsonArray = 16,
  kJsonObject = 32,
};
using JsonTypes = uint8_t;
inline constexpr JsonTypes kJsonAny = 63;

// Parameter -> the types that its schema allows, as far as `type`, `enum`, `const`, `anyOf` and
// `oneOf` tell; any of them if they do not. A parameter that is not there may be anything.
using ParameterTypes = std::map<std::string, JsonTypes, std::less<>>;
using FunctionTypes = std::map<std::string, ParameterTypes, std::less<>>;

// Of a JSON text; 0: it is none, or nested deeper than limits::kJsonDepthMax.
JsonTypes TypeOfJson(absl::string_view text);

// REQUIRES: `parameters` is the text of a JSON object, or empty.
ParameterTypes ParameterTypesOf(absl::string_view parameters);

}  // namespace ultraspeed::router
