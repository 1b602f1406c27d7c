#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/limits.h"
#include "tests/common/grammar/grammar_testing.h"

namespace ultraspeed::grammar {
namespace {

TEST(JsonSchemaErrors, NameThePlaceAndTheKeyword) {
  const auto grammar =
      FromJsonSchema(R"({"type":"object","properties":{"age":{"type":"number","not":{}}}})",
                     "response_format.json_schema.schema");
  EXPECT_EQ(grammar.status().message(),
            R"(response_format.json_schema.schema.properties.age: "not" is not supported)");
  EXPECT_EQ(grammar.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(JsonSchemaErrors, OfEveryKind) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({"anyOf":[{},{"not":{}}]})", R"(schema.anyOf[1]: "not" is not supported)"},
      {R"({"items":{"prefixItems":[{"if":{}}]}})",
       R"(schema.items.prefixItems[0]: "if" is not supported)"},
      {R"({"$ref":"#/$defs/a","$defs":{"a":{"uniqueItems":true}}})",
       R"(schema.$defs.a: "uniqueItems" is not supported)"},
      {R"({"additionalProperties":{"patternProperties":{}}})",
       R"(schema.additionalProperties: "patternProperties" is not supported)"},
      {R"({"typo":1})", R"(schema: "typo" is not supported)"},
      {R"({"properties":{"a":{"$dynamicRef":"#"}}})",
       R"(schema.properties.a: "$dynamicRef" is not supported)"},
      {R"({"allOf":[{},{}]})", R"(schema: "allOf" of more than one schema is not supported)"},
      {R"({"anyOf":[{}],"type":"string"})", R"(schema: "type" beside "anyOf" is not supported)"},
      {R"({"enum":["a"],"minLength":1})", R"(schema: "minLength" beside "enum" is not supported)"},
      {R"({"$ref":"#","enum":[1]})", R"(schema: "enum" beside "$ref" is not supported)"},
      {R"({"type":"number","minimum":"1"})", R"(schema: "minimum" is no number)"},
      {R"({"minimum":1,"exclusiveMaximum":1})", "schema: no number is within its bounds"},
      {R"({"type":"string","pattern":1})", R"(schema: "pattern" is no string)"},
      {R"({"type":"string","format":1})", R"(schema: "format" is no string)"},
      {R"({"pattern":"a(b"})", R"(schema: "pattern": no end of a group at character 3)"},
      {R"x({"pattern":"(?=a)"})x",
       R"(schema: "pattern": this kind of group is not supported, at character 0)"},
      {R"({"pattern":"\\bword"})", R"(schema: "pattern": "\b" is not supported, at character 1)"},
      {R"({"pattern":"(a{2000}){3}"})",
       R"(schema: "pattern" has more than 4096 parts, its repetitions written out)"},
      {R"({"pattern":"a.{40}"})", R"(schema: "pattern" takes too many states to follow)"},
      {R"({"type":"integer","minimum":"1"})", R"(schema: "minimum" is no number within 64 bits)"},
      {R"({"type":"integer","maximum":1e30})", R"(schema: "maximum" is no number within 64 bits)"},
      {R"({"type":"integer","minimum":18446744073709551615})",
       R"(schema: "minimum" is no number within 64 bits)"},
      {R"({"type":"integer","minimum":2,"exclusiveMaximum":2})",
       "schema: no integer is within its bounds"},
      {R"({"type":"strin"})", R"(schema: "type" names the unknown type "strin")"},
      {R"({"type":1})", R"(schema: "type" is neither a string nor a list of them)"},
      {R"({"type":[]})", R"(schema: "type" names no type)"},
      {R"({"minItems":2,"maxItems":1})", R"(schema: "minItems" is greater than "maxItems")"},
      {R"({"minLength":-1})", R"(schema: "minLength" is no number of them)"},
      {R"({"maxLength":1.5})", R"(schema: "maxLength" is no number of them)"},
      {R"({"enum":1})", R"(schema: "enum" is no list)"},
      {R"({"enum":[]})", R"(schema: "enum" has no value that is allowed)"},
      {R"({"type":"integer","const":"a"})", R"(schema: "const" has no value that is allowed)"},
      {R"({"anyOf":[]})", R"(schema: "anyOf" is no list of schemas)"},
      {R"({"oneOf":{}})", R"(schema: "oneOf" is no list of schemas)"},
      {R"({"$ref":"other.json"})", R"(schema: "$ref" is no place inside of the schema)"},
      {R"({"$ref":1})", R"(schema: "$ref" is no place inside of the schema)"},
      {R"({"items":{"$ref":"#/$defs/x"}})",
       R"(schema.items: "$ref" names "#/$defs/x", which the schema does not have)"},
      {R"({"$ref":"#x"})", R"(schema: "$ref" names "#x", which the schema does not have)"},
      {R"({"properties":[]})", R"(schema: "properties" is no object)"},
      {R"({"required":"a"})", R"(schema: "required" is no list)"},
      {R"({"required":[1]})", R"(schema: "required" is no list of names)"},
      {R"({"required":["a"],"additionalProperties":false})",
       R"(schema: "required" names "a", which "additionalProperties" forbids)"},
      {R"({"prefixItems":{}})", R"(schema: "prefixItems" is no list)"},
      {R"({"items":[]})", "schema.items: is neither an object nor true or false"},
      {"3", "schema: is neither an object nor true or false"},
      {R"({"a")", "schema: is not valid JSON in UTF-8: incomplete JSON"},
      {"{} x", "schema: is not valid JSON in UTF-8: extra data"},
      {"", "schema: is not valid JSON in UTF-8: incomplete JSON"},
  };
  for (const auto& [schema, error] : cases) EXPECT_EQ(ErrorOf(schema), error) << schema;
}

TEST(JsonSchemaErrors, AreShort) {
  const std::string name = "é" + std::string(60'000, 'x');
  const std::string error =
      ErrorOf(absl::StrCat(R"({"properties":{")", name, R"(":{"items":{"not)", name, R"(":1}}}})"));
  EXPECT_THAT(error, testing::StartsWith("schema.properties.éxxx"));
  EXPECT_THAT(error, testing::HasSubstr("xxx…: \"notéxxx"));
  EXPECT_LT(error.size(), 1100u);
}

TEST(JsonSchemaErrors, NothingSatisfies) {
  for (const char* schema : {
           "false",
           R"({"$ref":"#"})",
           R"({"anyOf":[{"$ref":"#"},false]})",
           R"({"properties":{"a":{"$ref":"#"}},"required":["a"]})",
           R"({"items":{"$ref":"#"},"minItems":1})",
           R"({"items":false,"minItems":1})",
           R"({"prefixItems":[{},false],"minItems":2})",
           R"({"prefixItems":[{}],"items":false,"minItems":2})",
       }) {
    EXPECT_EQ(ErrorOf(schema), "schema: nothing satisfies it") << schema;
  }
}

// What cannot be satisfied inside of something that can is left out: no text runs into it.
TEST(JsonSchemaErrors, WhatNothingSatisfiesIsLeftOut) {
  const auto grammar =
      SchemaGrammar(R"({"properties":{"a":{"$ref":"#/$defs/loop"},"b":{"type":"null"}},
      "additionalProperties":false,"$defs":{"loop":{"items":{"$ref":"#/$defs/loop"},"minItems":1}}})");
  EXPECT_TRUE(Accepts(grammar, R"({"b":null})"));
  EXPECT_TRUE(Accepts(grammar, "{}"));
  EXPECT_EQ(NumAccepted(grammar, R"({"a)"), 2u);
}

TEST(JsonSchemaErrors, Bounds) {
  const auto repeat = [](const std::string& text, int times, const char* separator) {
    return absl::StrJoin(std::vector<std::string>(times, text), separator);
  };
  EXPECT_EQ(ErrorOf("{}" + std::string(limits::kSchemaBytesMax, ' ')),
            "schema: has 131074 bytes; at most 131072 are supported");
  EXPECT_EQ(ErrorOf(repeat(R"({"items":)", 65, "") + "{}" + repeat("}", 65, "")),
            "schema: is nested deeper than 64 levels");
  EXPECT_EQ(ErrorOf(absl::StrCat(R"({"anyOf":[)", repeat("{}", 130, ","), "]}")),
            "schema: has more than 128 alternatives in anyOf and oneOf");
  EXPECT_EQ(ErrorOf(absl::StrCat(R"({"enum":[)", repeat("1", 1001, ","), "]}")),
            R"(schema: "enum" has 1001 values; at most 1000 are supported)");
  std::string properties;
  for (int i = 0; i <= limits::kSchemaPropertiesMax; ++i) {
    absl::StrAppend(&properties, i > 0 ? "," : "", "\"", i, "\":{}");
  }
  EXPECT_EQ(ErrorOf(absl::StrCat(R"({"properties":{)", properties, "}}")),
            "schema: has more than 5000 properties");
  properties.clear();
  for (int i = 0; i <= limits::kSchemaOptionalMax; ++i) {
    absl::StrAppend(&properties, i > 0 ? "," : "", "\"", i, "\":{}");
  }
  EXPECT_EQ(ErrorOf(absl::StrCat(R"({"properties":{)", properties, "}}")),
            "schema: has more than 512 properties that are not required");
  EXPECT_EQ(ErrorOf(absl::StrCat(R"({"properties":{)", properties, R"(},"required":["0"]})")),
            "none");
  EXPECT_THAT(ErrorOf(absl::StrCat(R"({"prefixItems":[)", repeat("{}", 17000, ","), "]}")),
              testing::StartsWith("schema: needs "));
  // Required objects, each of which takes a level.
  std::string defs;
  for (int i = 0; i < 70; ++i) {
    absl::StrAppend(&defs, i > 0 ? "," : "", "\"", i, R"(":{"items":{"$ref":"#/$defs/)", i + 1,
                    R"("},"minItems":1})");
  }
  EXPECT_EQ(
      ErrorOf(absl::StrCat(R"({"$ref":"#/$defs/0","$defs":{)", defs, R"(,"70":{"type":"null"}}})")),
      "schema: asks for text that is nested deeper than 64 levels");
}

}  // namespace
}  // namespace ultraspeed::grammar
