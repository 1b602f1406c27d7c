#include "router/http/openai_tools.h"

#include <boost/json.hpp>
#include <string>

#include "absl/functional/function_ref.h"
#include "common/status_macros.h"
#include "router/http/request_parts.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

absl::Status VisitFunction(RequestFields& outer, FunctionShape shape,
                           absl::FunctionRef<absl::Status(RequestFields& function)> visit) {
  if (outer.Choice("type", {"function"}).empty()) outer.Refuse("type", "function");
  RETURN_IF_ERROR(outer.status());
  if (shape == FunctionShape::kFlat) return visit(outer);
  const json::object* function = outer.Object("function");
  if (function == nullptr) outer.Refuse("function", "an object");
  RETURN_IF_ERROR(outer.status());
  RequestFields inner(*function, outer.PathOf("function."));
  return visit(inner);
}

// "none", "auto", "required", or the function that has to be called.
absl::Status ReadChoice(RequestFields& fields, FunctionShape shape, v1::ChatRequest* request) {
  const json::value* choice = fields.Find("tool_choice");
  if (const json::object* named = choice == nullptr ? nullptr : choice->if_object()) {
    RequestFields outer(*named, "tool_choice.");
    return VisitFunction(outer, shape, [request](RequestFields& function) {
      const auto name = function.String("name");
      if (!name) function.Refuse("name", "the name of a tool");
      request->set_tool_choice(v1::TOOL_CHOICE_REQUIRED);
      request->set_required_tool(name.value_or(""));
      return function.status();
    });
  }
  const std::string word = fields.Choice("tool_choice", {"none", "auto", "required"});
  if (word == "none") request->set_tool_choice(v1::TOOL_CHOICE_NONE);
  if (word == "required") request->set_tool_choice(v1::TOOL_CHOICE_REQUIRED);
  return fields.status();
}

}  // namespace

absl::Status ReadOpenAiTools(RequestFields& fields, FunctionShape shape, v1::ChatRequest* request) {
  RETURN_IF_ERROR(ReadChoice(fields, shape, request));
  if (const auto value = fields.Bool("parallel_tool_calls"))
    request->set_parallel_tool_calls(*value);
  const json::array* tools = fields.Array("tools");
  RETURN_IF_ERROR(fields.status());
  if (tools == nullptr) return absl::OkStatus();
  return ForEachObject(*tools, "tools", "a tool", [&](RequestFields& tool) {
    return VisitFunction(tool, shape, [request](RequestFields& function) {
      return AddFunction(function, "parameters", request);
    });
  });
}

}  // namespace ultraspeed::router
