// Calls of tools, as MiMo-V2's chat template has them between the tokens <tool_call> and
// </tool_call>, and as router/tool_call_parser.h reads them:
//
//   \n<function=NAME>\n<parameter=KEY>VALUE</parameter>\n</function>\n
//
// with as many parameters as there are. Of a strict tool they keep to its schema (AddParameters in
// json_schema.h, argument_rules.h); of any other tool keys and values are any text without the mark
// that ends them.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/grammar/grammar.h"

namespace ultraspeed::grammar {

inline constexpr absl::string_view kFunctionBegin = "<function=";
inline constexpr absl::string_view kFunctionEnd = "</function>";
inline constexpr absl::string_view kParameterBegin = "<parameter=";
inline constexpr absl::string_view kParameterEnd = "</parameter>";

struct CallableTool {
  std::string name;
  bool is_strict = false;
  std::string parameters;  // text of a JSON Schema; empty: there are none
};

// One call of one of the tools. INVALID_ARGUMENT begins with the place, such as
// `<field_name>[2].parameters_json.properties.age: "not" is not supported`.
absl::StatusOr<std::shared_ptr<const Grammar>> FromTools(absl::Span<const CallableTool> tools,
                                                         absl::string_view field_name);

}  // namespace ultraspeed::grammar
