// How the text of a tool's argument is read: its schema says of which types the value may be, and
// text that is JSON of one of them is that value; any other is a string, as it stands. Both what
// reads a model's calls (router/tool_call_parser.h) and the grammar that holds them
// (argument_rules.h) go by this. Pure.
#pragma once

#include <boost/json/fwd.hpp>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace ultraspeed::grammar {

// Types of JSON values; a set of them is their sum. A number without fraction is an integer,
// however it is written.
using JsonTypes = uint8_t;
inline constexpr JsonTypes kJsonNull = 1;
inline constexpr JsonTypes kJsonBoolean = 2;
inline constexpr JsonTypes kJsonInteger = 4;
inline constexpr JsonTypes kJsonFraction = 8;
inline constexpr JsonTypes kJsonNumber = kJsonInteger + kJsonFraction;
inline constexpr JsonTypes kJsonString = 16;
inline constexpr JsonTypes kJsonArray = 32;
inline constexpr JsonTypes kJsonObject = 64;
inline constexpr JsonTypes kJsonAny = 127;

struct ArgumentTypes {
  JsonTypes types = kJsonAny;  // that the schema allows; more, if that takes too long to find out
  JsonTypes open = kJsonAny;   // of which it allows every value; likewise fewer
};
using ArgumentTypesByName = std::map<std::string, ArgumentTypes, std::less<>>;

// Of the `properties` of a JSON Schema, whatever else it is. What it does not name may be anything.
ArgumentTypesByName ArgumentTypesOf(const boost::json::value& schema);

// The JSON that the text is read as, without white space around it and with Python's constants
// spelled as in JSON; none: it is a string.
std::optional<absl::string_view> JsonOfArgument(absl::string_view text, JsonTypes types);

}  // namespace ultraspeed::grammar
