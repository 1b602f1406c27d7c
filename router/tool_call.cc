#include "router/tool_call.h"

#include <boost/json.hpp>

#include "router/json_text.h"

namespace ultraspeed::router {

grammar::ArgumentTypesByName ParameterTypesOf(absl::string_view parameters) {
  auto schema = ParseJsonObject(parameters, "parameters");
  if (!schema.ok()) return {};
  return grammar::ArgumentTypesOf(boost::json::value(*std::move(schema)));
}

}  // namespace ultraspeed::router
