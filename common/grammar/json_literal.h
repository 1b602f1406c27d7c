// How grammars spell given JSON: without white space, strings with JSON's short escapes, numbers
// with the fewest digits. Pure.
#pragma once

#include <boost/json/fwd.hpp>
#include <string>

#include "absl/strings/string_view.h"

namespace ultraspeed::grammar {

std::string JsonLiteral(const boost::json::value& value);
// `text` (UTF-8) as a string.
std::string QuotedJson(absl::string_view text);

}  // namespace ultraspeed::grammar
