#include "router/json_text.h"

#include <boost/json.hpp>
#include <charconv>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/limits.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

// How Python writes JSON's names and texts.
struct Spelling {
  const char* null;
  const char* true_;
  const char* false_;
  bool single_quotes;
};
constexpr Spelling kDumps = {"null", "true", "false", false};
constexpr Spelling kRepr = {"None", "True", "False", true};

// float.__repr__: the fewest digits that read back as the same number, with an exponent outside of
// 1e-4 <= |number| < 1e16.
std::string PythonFloat(double number) {
  char buffer[32];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), number, std::chars_format::scientific).ptr;
  const std::string scientific(buffer, end);  // -1.25e+01
  const int exponent = std::atoi(scientific.c_str() + scientific.find('e') + 1);
  if (number != 0 && (exponent < -4 || exponent >= 16)) return scientific;
  const auto fixed_end =
      std::to_chars(buffer, buffer + sizeof(buffer), number, std::chars_format::fixed).ptr;
  std::string fixed(buffer, fixed_end);
  if (fixed.find('.') == std::string::npos) fixed += ".0";
  return fixed;
}

std::string SingleQuoted(absl::string_view text) {
  std::string quoted = "'";
  for (const char c : text) {
    if (c == '\'' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + "'";
}

void Append(const json::value& value, const Spelling& spelling, std::string* out) {
  switch (value.kind()) {
    case json::kind::null:
      absl::StrAppend(out, spelling.null);
      break;
    case json::kind::bool_:
      absl::StrAppend(out, value.get_bool() ? spelling.true_ : spelling.false_);
      break;
    case json::kind::int64:
      absl::StrAppend(out, value.get_int64());
      break;
    case json::kind::uint64:
      absl::StrAppend(out, value.get_uint64());
      break;
    case json::kind::double_:
      absl::StrAppend(out, PythonFloat(value.get_double()));
      break;
    case json::kind::string: {
      const json::string& text = value.get_string();
      absl::StrAppend(out, spelling.single_quotes ? SingleQuoted({text.data(), text.size()})
                                                  : json::serialize(text));
      break;
    }
    case json::kind::array: {
      absl::string_view separator = "[";
      for (const json::value& item : value.get_array()) {
        absl::StrAppend(out, std::exchange(separator, ", "));
        Append(item, spelling, out);
      }
      absl::StrAppend(out, separator == "[" ? "[]" : "]");
      break;
    }
    case json::kind::object: {
      absl::string_view separator = "{";
      for (const auto& member : value.get_object()) {
        absl::StrAppend(out, std::exchange(separator, ", "));
        Append(json::string(member.key()), spelling, out);
        absl::StrAppend(out, ": ");
        Append(member.value(), spelling, out);
      }
      absl::StrAppend(out, separator == "{" ? "{}" : "}");
      break;
    }
  }
}

}  // namespace

absl::StatusOr<json::object> ParseJsonObject(absl::string_view text, absl::string_view name) {
  json::parse_options options;
  options.max_depth = limits::kJsonDepthMax;
  json::stream_parser parser({}, options);
  boost::system::error_code error;
  const size_t num_parsed = parser.write_some(text.data(), text.size(), error);
  if (error == json::error::too_deep) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, " is nested deeper than ", limits::kJsonDepthMax, " levels at byte ", num_parsed));
  }
  if (!error && num_parsed < text.size()) error = json::error::extra_data;
  if (!error) parser.finish(error);
  if (error) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is not valid JSON in UTF-8 at byte ",
                                                   num_parsed, ": ", error.message()));
  }
  json::value value = parser.release();
  if (value.is_object()) return std::move(value.get_object());
  return absl::InvalidArgumentError(absl::StrCat(name, " is no JSON object"));
}

std::string PythonDumps(const json::value& value) {
  std::string text;
  Append(value, kDumps, &text);
  return text;
}

std::string PythonStr(const json::value& value) {
  if (value.is_string()) return std::string(value.get_string());
  std::string text;
  Append(value, kRepr, &text);
  return text;
}

}  // namespace ultraspeed::router
