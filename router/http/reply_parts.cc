#include "router/http/reply_parts.h"

#include <algorithm>
#include <boost/json.hpp>

#include "absl/strings/str_cat.h"

namespace ultraspeed::router {

namespace json = boost::json;

const char* OwnTierName(v1::ServiceTier tier) {
  return tier == v1::SERVICE_TIER_ULTRASPEED ? "ultraspeed" : "standard";
}

json::object SpeedAndBill(const v1::GenerateChunk& last) {
  json::object object = {{"tokens_per_second", last.timing().tokens_per_second()},
                         {"ttft_ms", last.timing().ttft_ms()},
                         {"tokens_per_round", nullptr},
                         {"billed_tier", OwnTierName(last.billed_tier())},
                         {"billed_reason", last.billed_reason()},
                         {"seed", last.seed()}};
  if (const int64_t rounds = last.usage().draft_rounds(); rounds > 0) {
    object["tokens_per_round"] =
        static_cast<double>(last.usage().completion_tokens()) / static_cast<double>(rounds);
  }
  return object;
}

void VisitInOrder(const v1::GenerateChunk& chunk,
                  absl::FunctionRef<void(const v1::ToolCallDelta&)> continued,
                  absl::FunctionRef<void()> text,
                  absl::FunctionRef<void(const v1::ToolCallDelta&)> begun) {
  const auto& calls = chunk.tool_calls();
  const auto first_begun =
      std::find_if(calls.begin(), calls.end(), [](const auto& call) { return !call.id().empty(); });
  std::for_each(calls.begin(), first_begun, continued);
  text();
  std::for_each(first_begun, calls.end(), begun);
}

void JoinCalls(const v1::GenerateChunk& chunk, std::vector<v1::ToolCallDelta>* calls) {
  for (const v1::ToolCallDelta& delta : chunk.tool_calls()) {
    if (delta.id().empty() && !calls->empty()) {
      calls->back().mutable_arguments()->append(delta.arguments());
    } else {
      calls->push_back(delta);
    }
  }
}

std::string SseEvent(absl::string_view name, const json::object& data) {
  std::string event;
  if (!name.empty()) absl::StrAppend(&event, "event: ", name, "\n");
  // JSON as Boost writes it has no line breaks, which would end the event.
  absl::StrAppend(&event, "data: ", json::serialize(data), "\n\n");
  return event;
}

}  // namespace ultraspeed::router
