#include "router/http/openai_lists.h"

#include <algorithm>
#include <boost/json.hpp>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "common/status_macros.h"
#include "router/http/reply_parts.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

json::object ModelJson(const v1::Model& model, int64_t created_unix_s) {
  json::array tiers;
  for (const int tier : model.tiers()) {
    tiers.emplace_back(OwnTierName(static_cast<v1::ServiceTier>(tier)));
  }
  return {{"id", model.name()},
          {"object", "model"},
          {"created", created_unix_s},
          {"owned_by", "ultraspeed"},
          {"context_tokens", model.context_tokens()},
          {"workers_ready", model.workers_ready()},
          {"tiers", std::move(tiers)}};
}

absl::StatusOr<google::protobuf::Timestamp> ParseTime(const std::string& field,
                                                      const std::string& text) {
  google::protobuf::Timestamp stamp;
  int64_t seconds;
  absl::Time time;
  std::string error;
  if (absl::SimpleAtoi(text, &seconds)) {
    stamp.set_seconds(seconds);
  } else if (absl::ParseTime(absl::RFC3339_full, text, &time, &error)) {
    stamp.set_seconds(absl::ToUnixSeconds(time));
    stamp.set_nanos(static_cast<int32_t>(
        absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(stamp.seconds()))));
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat(field, "=", text, ": must be Unix seconds or a time of RFC 3339"));
  }
  // What Timestamp may hold: the years 1..9999.
  if (stamp.seconds() < -62135596800 || stamp.seconds() > 253402300799) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, "=", text, ": must be in the years 1..9999"));
  }
  return stamp;
}

int64_t WidthSeconds(const std::string& bucket_width) {
  if (bucket_width == "1m") return 60;
  return bucket_width == "1d" ? 86400 : 3600;
}

}  // namespace

std::string ModelListBody(const v1::ListModelsResponse& models, int64_t created_unix_s) {
  json::array data;
  for (const v1::Model& model : models.models()) data.push_back(ModelJson(model, created_unix_s));
  return json::serialize(json::object{{"object", "list"}, {"data", std::move(data)}});
}

absl::StatusOr<std::string> ModelBody(const v1::ListModelsResponse& models, const std::string& id,
                                      int64_t created_unix_s) {
  const auto found = std::find_if(models.models().begin(), models.models().end(),
                                  [&](const v1::Model& model) { return model.name() == id; });
  if (found == models.models().end()) {
    return absl::NotFoundError(absl::StrCat("model ", id, " is not served here, or not to you"));
  }
  return json::serialize(ModelJson(*found, created_unix_s));
}

absl::StatusOr<v1::GetUsageRequest> ParseUsageQuery(
    const std::multimap<std::string, std::string>& query) {
  v1::GetUsageRequest request;
  for (const auto& [name, value] : query) {
    if (name == "start") {
      ASSIGN_OR_RETURN(*request.mutable_start(), ParseTime(name, value));
    } else if (name == "end") {
      ASSIGN_OR_RETURN(*request.mutable_end(), ParseTime(name, value));
    } else if (name == "bucket_width") {
      request.set_bucket_width(value);
    } else if (name == "group_by" || name == "group_by[]") {
      for (const absl::string_view group : absl::StrSplit(value, ',', absl::SkipEmpty())) {
        request.add_group_by(std::string(group));
      }
    }
  }
  return request;
}

std::string UsageBody(const v1::GetUsageResponse& usage, const v1::GetUsageRequest& request) {
  const auto is_grouped_by = [&](const char* field) {
    return std::count(request.group_by().begin(), request.group_by().end(), field) > 0;
  };
  std::map<int64_t, json::array> results;  // start of the bucket, Unix seconds
  for (const auto& bucket : usage.buckets()) {
    json::object result = {{"object", "usage.completions.result"},
                           {"input_tokens", bucket.usage().prompt_tokens()},
                           {"input_cached_tokens", bucket.usage().cached_tokens()},
                           {"output_tokens", bucket.usage().completion_tokens()},
                           {"reasoning_tokens", bucket.usage().reasoning_tokens()},
                           {"draft_rounds", bucket.usage().draft_rounds()},
                           {"num_model_requests", bucket.requests()},
                           {"cost_nanodollars", bucket.cost_nanodollars()},
                           {"api_key_id", nullptr},
                           {"model", nullptr},
                           {"service_tier", nullptr}};
    if (is_grouped_by("api_key")) result["api_key_id"] = bucket.api_key_id();
    if (is_grouped_by("model")) result["model"] = bucket.model();
    if (is_grouped_by("service_tier")) result["service_tier"] = OwnTierName(bucket.service_tier());
    results[bucket.start().seconds()].push_back(std::move(result));
  }
  json::array data;
  for (auto& [start, of_bucket] : results) {
    data.push_back(json::object{{"object", "bucket"},
                                {"start_time", start},
                                {"end_time", start + WidthSeconds(request.bucket_width())},
                                {"results", std::move(of_bucket)}});
  }
  return json::serialize(json::object{
      {"object", "page"}, {"data", std::move(data)}, {"has_more", false}, {"next_page", nullptr}});
}

}  // namespace ultraspeed::router
