#include "router/finish_name.h"

#include "router/settlement.h"

namespace ultraspeed::router {

absl::string_view FinishName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_TOOL_CALLS:
      return "tool_calls";
    case v1::FINISH_REASON_CANCELLED:
      return kFinishCancelled;
    default:
      return kFinishError;
  }
}

}  // namespace ultraspeed::router
