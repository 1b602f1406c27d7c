// Parts that the answers of every shape share, as JSON. Private to router/http's reply writers.
// Pure.
#pragma once

#include <boost/json/fwd.hpp>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"
#include "ultraspeed/v1/inference.pb.h"

namespace ultraspeed::router {

const char* OwnTierName(v1::ServiceTier tier);  // "standard" or "ultraspeed"

// The extension `ultraspeed` of a terminal chunk: tokens_per_second, ttft_ms, tokens_per_round
// (null if no decode round ran), billed_tier, billed_reason, seed.
boost::json::object SpeedAndBill(const v1::GenerateChunk& last);

// Calls `continued` for what goes on with the call that is open, then `text`, then `begun` for
// every call that begins: the order in which shapes with one open block tell a chunk.
void VisitInOrder(const v1::GenerateChunk& chunk,
                  absl::FunctionRef<void(const v1::ToolCallDelta&)> continued,
                  absl::FunctionRef<void()> text,
                  absl::FunctionRef<void(const v1::ToolCallDelta&)> begun);
// Adds a chunk's calls to those of the chunks before it, a call's deltas to one.
void JoinCalls(const v1::GenerateChunk& chunk, std::vector<v1::ToolCallDelta>* calls);

// `name` empty: no event line.
std::string SseEvent(absl::string_view name, const boost::json::object& data);

}  // namespace ultraspeed::router
