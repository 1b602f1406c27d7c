// A delta of a call, as chunks of the gRPC API carry it. For tests of the HTTP shapes.
#pragma once

#include <string>

#include "absl/strings/str_cat.h"
#include "ultraspeed/v1/inference.pb.h"

namespace ultraspeed::router {

// `name` empty: more of the call that is open.
inline void AddCallDelta(int index, const std::string& name, const std::string& arguments,
                         v1::GenerateChunk* chunk) {
  v1::ToolCallDelta* delta = chunk->add_tool_calls();
  delta->set_index(index);
  if (!name.empty()) {
    delta->set_id(absl::StrCat("call_", index));
    delta->set_name(name);
  }
  delta->set_arguments(arguments);
}

}  // namespace ultraspeed::router
