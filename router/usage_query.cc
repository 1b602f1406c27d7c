#include "router/usage_query.h"

#include "absl/strings/str_cat.h"

namespace ultraspeed::router {
namespace {

absl::Time ToTime(const google::protobuf::Timestamp& stamp) {
  return absl::FromUnixSeconds(stamp.seconds()) + absl::Nanoseconds(stamp.nanos());
}

google::protobuf::Timestamp ToTimestamp(absl::Time time) {
  google::protobuf::Timestamp stamp;
  stamp.set_seconds(absl::ToUnixSeconds(time));
  stamp.set_nanos(static_cast<int32_t>(
      absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(stamp.seconds()))));
  return stamp;
}

}  // namespace

absl::StatusOr<UsageQuery> ToUsageQuery(const v1::GetUsageRequest& request,
                                        const std::string& tenant_id, absl::Time now) {
  UsageQuery query;
  query.tenant_id = tenant_id;
  query.end = request.has_end() ? ToTime(request.end()) : now;
  query.start = request.has_start() ? ToTime(request.start()) : query.end - absl::Hours(24);
  if (query.start >= query.end) {
    return absl::InvalidArgumentError(
        absl::StrCat("start=", absl::FormatTime(query.start),
                     ": must be before end=", absl::FormatTime(query.end)));
  }
  const std::string& width = request.bucket_width();
  if (width == "1m") {
    query.bucket_width = BucketWidth::kMinute;
  } else if (width == "1d") {
    query.bucket_width = BucketWidth::kDay;
  } else if (!width.empty() && width != "1h") {
    return absl::InvalidArgumentError(
        absl::StrCat("bucket_width=", width, ": must be 1m, 1h or 1d"));
  }
  for (const std::string& group : request.group_by()) {
    if (group == "api_key") {
      query.by_key = true;
    } else if (group == "model") {
      query.by_model = true;
    } else if (group == "service_tier") {
      query.by_billed_tier = true;
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("group_by=", group, ": must be api_key, model or service_tier"));
    }
  }
  return query;
}

v1::GetUsageResponse ToUsageResponse(const std::vector<UsageBucket>& buckets) {
  v1::GetUsageResponse response;
  for (const UsageBucket& bucket : buckets) {
    v1::GetUsageResponse::Bucket* out = response.add_buckets();
    *out->mutable_start() = ToTimestamp(bucket.start);
    out->set_api_key_id(bucket.key_id);
    out->set_model(bucket.model);
    if (bucket.billed_tier) {
      out->set_service_tier(*bucket.billed_tier == Tier::kUltraspeed ? v1::SERVICE_TIER_ULTRASPEED
                                                                     : v1::SERVICE_TIER_STANDARD);
    }
    out->set_requests(bucket.requests);
    out->mutable_usage()->set_prompt_tokens(bucket.tokens.prompt);
    out->mutable_usage()->set_cached_tokens(bucket.tokens.cached);
    out->mutable_usage()->set_completion_tokens(bucket.tokens.completion);
    out->mutable_usage()->set_reasoning_tokens(bucket.reasoning_tokens);
    out->mutable_usage()->set_draft_rounds(bucket.draft_rounds);
    out->set_cost_nanodollars(bucket.cost_nanodollars);
  }
  return response;
}

}  // namespace ultraspeed::router
