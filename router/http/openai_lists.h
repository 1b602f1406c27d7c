// The OpenAI shapes that answer in one piece: models, and a tenant's usage. Pure.
//
// Source: OpenAI API reference, "The model object" and "Usage" (completions usage object). A model
// also tells context_tokens, workers_ready and tiers; a usage result also tells its cost.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "ultraspeed/v1/inference.pb.h"

namespace ultraspeed::router {

std::string ModelListBody(const v1::ListModelsResponse& models, int64_t created_unix_s);
// NOT_FOUND names the model.
absl::StatusOr<std::string> ModelBody(const v1::ListModelsResponse& models, const std::string& id,
                                      int64_t created_unix_s);

// Query of GET /v1/usage: start, end (Unix seconds or RFC 3339), bucket_width, group_by (repeated
// or comma-separated). INVALID_ARGUMENT names the field.
absl::StatusOr<v1::GetUsageRequest> ParseUsageQuery(
    const std::multimap<std::string, std::string>& query);
// One entry per time bucket, its groups as results.
std::string UsageBody(const v1::GetUsageResponse& usage, const v1::GetUsageRequest& request);

}  // namespace ultraspeed::router
