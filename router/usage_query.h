// GetUsage's messages to and from the store's plain values. Called by InferenceService; pure.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "router/ledger.h"
#include "ultraspeed/v1/inference.pb.h"

namespace ultraspeed::router {

// Absent: end is `now`, start a day before end, bucket_width 1h. INVALID_ARGUMENT names field,
// value and what is allowed.
absl::StatusOr<UsageQuery> ToUsageQuery(const v1::GetUsageRequest& request,
                                        const std::string& tenant_id, absl::Time now);

v1::GetUsageResponse ToUsageResponse(const std::vector<UsageBucket>& buckets);

}  // namespace ultraspeed::router
