// Parts that the requests of every shape share. Private to router/http's request parsers. Pure.
#pragma once

#include <boost/json/fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "router/http/request_fields.h"
#include "ultraspeed/v1/inference.pb.h"

namespace ultraspeed::router {

// `model`, which must be there.
std::string ReadModel(RequestFields& fields);
// temperature, top_p, top_k and seed.
void ReadSampling(RequestFields& fields, v1::SamplingParams* sampling);
// Our own: speculation and ignore_eos.
void ReadSpeculation(RequestFields& fields, v1::GenerateOptions* options);
// OpenAI's service_tier, and our names for it: true if it was asked for by one of ours.
bool ReadOpenAiTier(RequestFields& fields, v1::GenerateOptions* options);
// `thinking`, an object with a type: Anthropic's field, and Xiaomi's in OpenAI's shape. "adaptive"
// is on: the model always decides how much.
std::optional<bool> ReadThinking(RequestFields& fields);
// A tool's name, description, schema, which is the object `schema`, and whether it is strict.
absl::Status AddFunction(RequestFields& function, absl::string_view schema,
                         v1::ChatRequest* request);
// A string, or an array of objects of one of the `types` with a `text` each, which are joined with
// line breaks. `part`: what an error calls one.
absl::StatusOr<std::string> ReadTexts(RequestFields& fields, absl::string_view name,
                                      const std::vector<absl::string_view>& types,
                                      absl::string_view part);
// Visits the objects of the array at `path` in order, up to the first error. INVALID_ARGUMENT: an
// item is no object; "it must be <must_be>".
absl::Status ForEachObject(const boost::json::array& items, absl::string_view path,
                           absl::string_view must_be,
                           absl::FunctionRef<absl::Status(RequestFields& item)> visit);

}  // namespace ultraspeed::router
