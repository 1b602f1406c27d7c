#include "common/grammar/json_literal.h"

#include <boost/json.hpp>
#include <charconv>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ultraspeed::grammar {

std::string QuotedJson(absl::string_view text) {
  return boost::json::serialize(boost::json::string_view(text.data(), text.size()));
}

std::string JsonLiteral(const boost::json::value& value) {
  std::string text;
  if (const boost::json::array* array = value.if_array()) {
    for (const boost::json::value& item : *array) {
      absl::StrAppend(&text, text.empty() ? "[" : ",", JsonLiteral(item));
    }
    return array->empty() ? "[]" : text + "]";
  }
  if (const boost::json::object* object = value.if_object()) {
    for (const auto& [key, member] : *object) {
      absl::StrAppend(&text, text.empty() ? "{" : ",", QuotedJson({key.data(), key.size()}), ":",
                      JsonLiteral(member));
    }
    return object->empty() ? "{}" : text + "}";
  }
  if (const double* number = value.if_double()) {
    char buffer[32];
    return std::string(buffer, std::to_chars(buffer, buffer + sizeof(buffer), *number).ptr);
  }
  return boost::json::serialize(value);
}

}  // namespace ultraspeed::grammar
