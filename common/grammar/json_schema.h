// Grammars of the JSON values that a schema allows. What is written is always valid against the
// schema; not all that is valid can be written:
//   * Members of objects come in the schema's order, others (additionalProperties) behind them. A
//     schema without additionalProperties allows others, as JSON Schema says.
//   * oneOf is anyOf. `enum` and `const` are spelled as json_literal.h says.
//   * What json_rules.h bounds.
//
// Supported: type (one or several), properties, required, additionalProperties, items, prefixItems,
// minItems, maxItems, enum, const, anyOf, oneOf, allOf of one schema, $ref to "#" and into it,
// recursion included, $defs, definitions, minLength, maxLength, pattern (pattern.h), format
// (string_formats.h; a pattern beside it says more), minimum, maximum, exclusiveMinimum,
// exclusiveMaximum and multipleOf (multiple_range.h). Without type, the other keywords tell which
// types there are; without those, every value is allowed. Passed over, as they constrain nothing:
// title, description, default, examples, deprecated, readOnly, writeOnly, other formats, content…,
// $schema, $id, $comment, and names that begin with "x-". Keywords of a type that a schema does not
// allow, too, have nothing to say.
//
// All else is refused: INVALID_ARGUMENT, beginning with the place in the schema, such as
// `response_format.json_schema.schema.properties.age: "not" is not supported`.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/grammar/grammar.h"

namespace ultraspeed::grammar {

// `field_name`: what errors call the schema.
absl::StatusOr<std::shared_ptr<const Grammar>> FromJsonSchema(absl::string_view schema_text,
                                                              absl::string_view field_name);
// Any JSON object.
std::shared_ptr<const Grammar> AnyJsonObject();

// The parameters of a schema of an object, each in its element as tool_calls.h has them, as a rule
// of a larger grammar: in the order of `properties`, those left out that are not required, no
// others. Beyond what is refused above: what would say something of all parameters together
// (`$ref`, `anyOf` and the like, a schema as additionalProperties), and names with ">".
absl::StatusOr<RuleId> AddParameters(GrammarBuilder* builder, absl::string_view schema_text,
                                     absl::string_view field_name);

}  // namespace ultraspeed::grammar
