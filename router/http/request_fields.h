// Typed reading of a request's JSON object. The first thing that is wrong is kept and names field,
// value and what it must be: "temperature is \"hot\"; it must be a number". Bounds that the gRPC
// API checks anyway are not checked here. Pure.
#pragma once

#include <boost/json/fwd.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ultraspeed::router {

// INVALID_ARGUMENT: not UTF-8, not JSON, nested deeper than limits::kJsonDepthMax, or no object.
absl::StatusOr<boost::json::object> ParseJsonBody(absl::string_view body);

// An absent field and null are the same: nothing is returned and nothing is wrong.
// Thread contract: one thread; the object is borrowed.
class RequestFields {
 public:
  // `path` goes before a field's name in errors: "messages[1]." or empty.
  explicit RequestFields(const boost::json::object& object, std::string path = {});

  const boost::json::value* Find(absl::string_view name) const;  // null: absent, or null
  std::optional<std::string> String(absl::string_view name);
  std::optional<bool> Bool(absl::string_view name);
  std::optional<double> Number(absl::string_view name);
  // A whole number of min..max, however it is spelled (16, 16.0, 1.6e1).
  std::optional<int64_t> Whole(absl::string_view name, int64_t min, int64_t max);
  std::optional<int32_t> Int32(absl::string_view name);
  // -2^63..2^64-1; negative ones as their two's complement.
  std::optional<uint64_t> Bits64(absl::string_view name);
  const boost::json::object* Object(absl::string_view name);
  const boost::json::array* Array(absl::string_view name);
  // A string, or an array of strings.
  std::vector<std::string> Strings(absl::string_view name);
  // One of `allowed`; empty if absent.
  std::string Choice(absl::string_view name, const std::vector<absl::string_view>& allowed);

  // What no server may pretend to honour: refused unless absent, null, false, 0, "" or empty.
  void RefuseUnlessEmpty(absl::string_view name);
  // "<name> is <value>; it must be <must_be>".
  void Refuse(absl::string_view name, absl::string_view must_be);
  // Keeps `status` if it is the first that is not OK.
  void Merge(const absl::Status& status);

  std::string PathOf(absl::string_view name) const;
  const absl::Status& status() const { return status_; }

 private:
  const boost::json::object& object_;
  const std::string path_;
  absl::Status status_;
};

}  // namespace ultraspeed::router
