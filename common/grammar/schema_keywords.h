// What single keywords of a JSON Schema say, apart from the schemas in them. `path` is the place of
// the schema, which errors begin with.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/grammar/grammar.h"
#include "common/grammar/multiple_range.h"
#include "common/grammar/number_range.h"
#include "common/grammar/pattern.h"

namespace ultraspeed::grammar {

// Both are cut if they are long: a schema's own names are in them.
absl::Status SchemaError(absl::string_view path, absl::string_view what);

// The type that a keyword is about; "" for those that are about all; null: not supported.
const absl::string_view* TypeOfKeyword(absl::string_view keyword);

// An error for the first keyword that is not supported, and for one that stands beside `whole`, a
// keyword that must say it all ("" for none).
absl::Status CheckKeywords(const boost::json::object& schema, absl::string_view whole,
                           absl::string_view path);

// The types of `type`, else those that the other keywords are about; empty: any.
absl::StatusOr<std::vector<std::string>> TypesOf(const boost::json::object& schema,
                                                 absl::string_view path);
bool IsOfType(const boost::json::value& value, absl::string_view type);

// Of minItems and maxItems, or minLength and maxLength.
absl::StatusOr<CountRange> CountRangeOf(const boost::json::object& schema,
                                        absl::string_view min_keyword,
                                        absl::string_view max_keyword, absl::string_view path);

struct IntegerBounds {
  std::optional<int64_t> min, max;  // inclusive
};
absl::StatusOr<IntegerBounds> IntegerBoundsOf(const boost::json::object& schema,
                                              absl::string_view path);

struct NumberBounds {
  std::optional<NumberBound> min, max;
};
absl::StatusOr<NumberBounds> NumberBoundsOf(const boost::json::object& schema,
                                            absl::string_view path);

absl::StatusOr<std::optional<DecimalStep>> MultipleOf(const boost::json::object& schema,
                                                      absl::string_view path);

// Of `pattern`, else of a `format` that says what strings look like; nullopt: of neither.
absl::StatusOr<std::optional<Pattern>> PatternOf(const boost::json::object& schema,
                                                 absl::string_view path);

}  // namespace ultraspeed::grammar
