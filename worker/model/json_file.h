// Strict reading of JSON objects that come with a checkpoint: every value is checked against a
// range where it is read.
//
// Callers: config.cc, safetensors.cc, checkpoint.cc, vocabulary.cc. A JsonFields remembers the
// first thing that was wrong, so a reader lists its keys one per line and asks for status() once; a
// wrong key yields the lower bound meanwhile. Thread: any one thread.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ultraspeed::worker {

inline constexpr int64_t kJsonFileBytesMax = 512LL << 20;

// The whole file. NOT_FOUND or INVALID_ARGUMENT names the file.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t bytes_max);

// `origin` names the text in messages.
absl::StatusOr<boost::json::object> ParseJsonObject(const std::string& origin,
                                                    std::string_view text);
absl::StatusOr<boost::json::object> ReadJsonObject(const std::string& path);

class JsonFields {
 public:
  // REQUIRES: `object` outlives this.
  JsonFields(std::string origin, const boost::json::object& object)
      : origin_(std::move(origin)), object_(object) {}

  bool Has(const char* key) const;  // present and not null
  int64_t Int(const char* key, int64_t min, int64_t max);
  int64_t IntOr(const char* key, int64_t min, int64_t max, int64_t fallback);
  double Number(const char* key, double min, double max);
  double NumberOr(const char* key, double min, double max, double fallback);
  bool BoolOr(const char* key, bool fallback);
  std::string String(const char* key);
  std::vector<int64_t> IntArray(const char* key, size_t count_min, size_t count_max, int64_t min,
                                int64_t max);
  // The nested object of `key`; an empty one if it is missing, which is an error.
  JsonFields Object(const char* key);

  // For keys of which this program supports one value: wrong only if present with another.
  void ExpectInt(const char* key, int64_t value);
  void ExpectNumber(const char* key, double value);
  void ExpectBool(const char* key, bool value);
  void ExpectString(const char* key, std::string_view value);

  // Records an error of the caller's own.
  void Fail(const char* key, const std::string& what);
  const absl::Status& status() const { return status_; }
  void Absorb(const JsonFields& nested) {
    if (status_.ok()) status_ = nested.status_;
  }

 private:
  const boost::json::value* Find(const char* key);  // null after recording that it is missing

  std::string origin_;
  const boost::json::object& object_;
  absl::Status status_;
};

}  // namespace ultraspeed::worker
