#include "router/http/request_fields.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "router/json_text.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

constexpr size_t kQuotedBytesMax = 64;  // of a value that an error quotes

std::string Quote(const json::value& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return absl::StrCat("an array of ", value.get_array().size());
  std::string text = json::serialize(value);
  if (text.size() <= kQuotedBytesMax) return text;
  size_t end = kQuotedBytesMax;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80)
    --end;  // no half of one
  return absl::StrCat(text.substr(0, end), "..");
}

std::optional<int64_t> AsWhole(const json::value& value) {
  if (value.is_int64()) return value.get_int64();
  if (!value.is_double()) return std::nullopt;  // uint64: above int64
  const double number = value.get_double();
  // 2^63 is a double, and the first that does not fit.
  if (number != std::trunc(number) || !(std::abs(number) < 9223372036854775808.0)) {
    return std::nullopt;
  }
  return static_cast<int64_t>(number);
}

}  // namespace

absl::StatusOr<json::object> ParseJsonBody(absl::string_view body) {
  return ParseJsonObject(body, "body");
}

RequestFields::RequestFields(const json::object& object, std::string path)
    : object_(object), path_(std::move(path)) {}

std::string RequestFields::PathOf(absl::string_view name) const {
  return absl::StrCat(path_, name);
}

void RequestFields::Merge(const absl::Status& status) { status_.Update(status); }

void RequestFields::Refuse(absl::string_view name, absl::string_view must_be) {
  const json::value* value = Find(name);
  Merge(absl::InvalidArgumentError(absl::StrCat(PathOf(name), " is ",
                                                value == nullptr ? "missing" : Quote(*value),
                                                "; it must be ", must_be)));
}

const json::value* RequestFields::Find(absl::string_view name) const {
  const json::value* value = object_.if_contains(json::string_view(name.data(), name.size()));
  return value == nullptr || value->is_null() ? nullptr : value;
}

std::optional<std::string> RequestFields::String(absl::string_view name) {
  const json::value* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return std::string(value->get_string());
  Refuse(name, "a string");
  return std::nullopt;
}

std::optional<bool> RequestFields::Bool(absl::string_view name) {
  const json::value* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_bool()) return value->get_bool();
  Refuse(name, "true or false");
  return std::nullopt;
}

std::optional<double> RequestFields::Number(absl::string_view name) {
  const json::value* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_number()) return value->to_number<double>();
  Refuse(name, "a number");
  return std::nullopt;
}

std::optional<int64_t> RequestFields::Whole(absl::string_view name, int64_t min, int64_t max) {
  const json::value* value = Find(name);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> number = AsWhole(*value);
  if (number && *number >= min && *number <= max) return number;
  Refuse(name, absl::StrCat("a whole number of ", min, "..", max));
  return std::nullopt;
}

std::optional<int32_t> RequestFields::Int32(absl::string_view name) {
  const auto number =
      Whole(name, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max());
  if (!number) return std::nullopt;
  return static_cast<int32_t>(*number);
}

std::optional<uint64_t> RequestFields::Bits64(absl::string_view name) {
  const json::value* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_uint64()) return value->get_uint64();
  if (const std::optional<int64_t> number = AsWhole(*value)) return static_cast<uint64_t>(*number);
  Refuse(name, "a whole number of -9223372036854775808..18446744073709551615");
  return std::nullopt;
}

const json::object* RequestFields::Object(absl::string_view name) {
  const json::value* value = Find(name);
  if (value == nullptr) return nullptr;
  if (!value->is_object()) Refuse(name, "an object");
  return value->if_object();
}

const json::array* RequestFields::Array(absl::string_view name) {
  const json::value* value = Find(name);
  if (value == nullptr) return nullptr;
  if (!value->is_array()) Refuse(name, "an array");
  return value->if_array();
}

std::vector<std::string> RequestFields::Strings(absl::string_view name) {
  const json::value* value = Find(name);
  if (value == nullptr) return {};
  if (value->is_string()) return {std::string(value->get_string())};
  std::vector<std::string> strings;
  const json::array* array = value->if_array();
  if (array == nullptr) Refuse(name, "a string or an array of strings");
  for (size_t i = 0; array != nullptr && i < array->size(); ++i) {
    const json::value& item = (*array)[i];
    if (item.is_string()) {
      strings.emplace_back(item.get_string());
    } else {
      Merge(absl::InvalidArgumentError(
          absl::StrCat(PathOf(name), "[", i, "] is ", Quote(item), "; it must be a string")));
    }
  }
  return strings;
}

std::string RequestFields::Choice(absl::string_view name,
                                  const std::vector<absl::string_view>& allowed) {
  const json::value* value = Find(name);
  if (value == nullptr) return "";
  const json::string* text = value->if_string();
  if (text != nullptr &&
      std::find(allowed.begin(), allowed.end(), absl::string_view(text->data(), text->size())) !=
          allowed.end()) {
    return std::string(*text);
  }
  Refuse(name, absl::StrCat("one of ", absl::StrJoin(allowed, ", ")));
  return "";
}

void RequestFields::RefuseUnlessEmpty(absl::string_view name) {
  const json::value* value = Find(name);
  if (value == nullptr) return;
  const bool is_empty = (value->is_bool() && !value->get_bool()) ||
                        (value->is_number() && value->to_number<double>() == 0) ||
                        (value->is_string() && value->get_string().empty()) ||
                        (value->is_array() && value->get_array().empty()) ||
                        (value->is_object() && value->get_object().empty());
  if (is_empty) return;
  Merge(absl::InvalidArgumentError(
      absl::StrCat(PathOf(name), " is ", Quote(*value), "; this server does not support it")));
}

}  // namespace ultraspeed::router
