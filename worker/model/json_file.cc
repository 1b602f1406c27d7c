#include "worker/model/json_file.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace ultraspeed::worker {
namespace {

namespace json = boost::json;

// A value as it is shown in a message; long ones are cut.
std::string Shown(const json::value& value) {
  std::string text = json::serialize(value);
  if (text.size() > 80) text = text.substr(0, 80) + "...";
  return text;
}

bool AsInt(const json::value& value, int64_t* out) {
  if (value.is_int64()) {
    *out = value.get_int64();
    return true;
  }
  if (value.is_uint64()) return false;  // only values above the range of int64
  if (value.is_double()) {
    const double number = value.get_double();
    if (number != std::floor(number) || std::fabs(number) > 9e15) return false;
    *out = static_cast<int64_t>(number);
    return true;
  }
  return false;
}

bool AsNumber(const json::value& value, double* out) {
  if (value.is_int64())
    *out = static_cast<double>(value.get_int64());
  else if (value.is_uint64())
    *out = static_cast<double>(value.get_uint64());
  else if (value.is_double())
    *out = value.get_double();
  else
    return false;
  return std::isfinite(*out);
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t bytes_max) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  }
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path, error));
  if (error) return absl::NotFoundError(absl::StrCat(path, ": ", error.message()));
  if (bytes > bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", bytes, " bytes; at most ", bytes_max, " are allowed"));
  }
  std::string text(static_cast<size_t>(bytes), '\0');
  std::ifstream in(path, std::ios::binary);
  if (!in.read(text.data(), bytes)) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot be read: ", std::strerror(errno)));
  }
  return text;
}

absl::StatusOr<json::object> ParseJsonObject(const std::string& origin, std::string_view text) {
  json::error_code error;
  json::value value = json::parse(json::string_view(text.data(), text.size()), error);
  if (error) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": not JSON: ", error.message()));
  }
  if (!value.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": must be a JSON object"));
  }
  return std::move(value.get_object());
}

absl::StatusOr<json::object> ReadJsonObject(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, kJsonFileBytesMax);
  if (!text.ok()) return text.status();
  return ParseJsonObject(path, *text);
}

void JsonFields::Fail(const char* key, const std::string& what) {
  if (!status_.ok()) return;
  status_ = absl::InvalidArgumentError(absl::StrCat(origin_, ": ", key, ": ", what));
}

const json::value* JsonFields::Find(const char* key) {
  const json::value* value = object_.if_contains(key);
  if (value == nullptr) Fail(key, "is missing");
  return value;
}

bool JsonFields::Has(const char* key) const {
  const json::value* value = object_.if_contains(key);
  return value != nullptr && !value->is_null();
}

int64_t JsonFields::Int(const char* key, int64_t min, int64_t max) {
  const json::value* value = Find(key);
  if (value == nullptr) return min;
  int64_t number = 0;
  if (!AsInt(*value, &number) || number < min || number > max) {
    Fail(key, absl::StrCat("is ", Shown(*value), "; must be an integer from ", min, " to ", max));
    return min;
  }
  return number;
}

int64_t JsonFields::IntOr(const char* key, int64_t min, int64_t max, int64_t fallback) {
  return Has(key) ? Int(key, min, max) : fallback;
}

double JsonFields::Number(const char* key, double min, double max) {
  const json::value* value = Find(key);
  if (value == nullptr) return min;
  double number = 0;
  if (!AsNumber(*value, &number) || number < min || number > max) {
    Fail(key, absl::StrCat("is ", Shown(*value), "; must be a number from ", min, " to ", max));
    return min;
  }
  return number;
}

double JsonFields::NumberOr(const char* key, double min, double max, double fallback) {
  return Has(key) ? Number(key, min, max) : fallback;
}

bool JsonFields::BoolOr(const char* key, bool fallback) {
  if (!Has(key)) return fallback;
  const json::value& value = object_.at(key);
  if (!value.is_bool()) {
    Fail(key, absl::StrCat("is ", Shown(value), "; must be true or false"));
    return fallback;
  }
  return value.get_bool();
}

std::string JsonFields::String(const char* key) {
  const json::value* value = Find(key);
  if (value == nullptr) return "";
  if (!value->is_string()) {
    Fail(key, absl::StrCat("is ", Shown(*value), "; must be a string"));
    return "";
  }
  return std::string(value->get_string().c_str(), value->get_string().size());
}

std::vector<int64_t> JsonFields::IntArray(const char* key, size_t count_min, size_t count_max,
                                          int64_t min, int64_t max) {
  std::vector<int64_t> numbers;
  const json::value* value = Find(key);
  if (value == nullptr) return numbers;
  if (!value->is_array() || value->get_array().size() < count_min ||
      value->get_array().size() > count_max) {
    Fail(key, absl::StrCat("is ", Shown(*value), "; must be an array of ", count_min, " to ",
                           count_max, " integers"));
    return numbers;
  }
  for (const json::value& element : value->get_array()) {
    int64_t number = 0;
    if (!AsInt(element, &number) || number < min || number > max) {
      Fail(key, absl::StrCat("holds ", Shown(element), "; each must be an integer from ", min,
                             " to ", max));
      return {};
    }
    numbers.push_back(number);
  }
  return numbers;
}

JsonFields JsonFields::Object(const char* key) {
  static const json::object kEmpty;
  const std::string origin = absl::StrCat(origin_, ": ", key);
  const json::value* value = Find(key);
  if (value == nullptr) return JsonFields(origin, kEmpty);
  if (!value->is_object()) {
    Fail(key, absl::StrCat("is ", Shown(*value), "; must be an object"));
    return JsonFields(origin, kEmpty);
  }
  return JsonFields(origin, value->get_object());
}

void JsonFields::ExpectInt(const char* key, int64_t expected) {
  if (!Has(key)) return;
  int64_t number = 0;
  if (!AsInt(object_.at(key), &number) || number != expected) {
    Fail(key, absl::StrCat("is ", Shown(object_.at(key)), "; only ", expected, " is supported"));
  }
}

void JsonFields::ExpectNumber(const char* key, double expected) {
  if (!Has(key)) return;
  double number = 0;
  if (!AsNumber(object_.at(key), &number) || number != expected) {
    Fail(key, absl::StrCat("is ", Shown(object_.at(key)), "; only ", expected, " is supported"));
  }
}

void JsonFields::ExpectBool(const char* key, bool expected) {
  if (!Has(key)) return;
  const json::value& value = object_.at(key);
  if (!value.is_bool() || value.get_bool() != expected) {
    Fail(key, absl::StrCat("is ", Shown(value), "; only ", expected ? "true" : "false",
                           " is supported"));
  }
}

void JsonFields::ExpectString(const char* key, std::string_view expected) {
  if (!Has(key)) return;
  const json::value& value = object_.at(key);
  if (!value.is_string() ||
      value.get_string() != json::string_view(expected.data(), expected.size())) {
    Fail(key,
         absl::StrCat("is ", Shown(value), "; only \"", std::string(expected), "\" is supported"));
  }
}

}  // namespace ultraspeed::worker
