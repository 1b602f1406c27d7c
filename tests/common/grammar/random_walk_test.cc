// Texts that a model without any sense would write under the masks: they end, and are what the
// schema asks for.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/grammar/constraint.h"
#include "tests/common/grammar/grammar_testing.h"
#include "tests/common/grammar/random_texts.h"
#include "tests/common/grammar/schema_checker.h"
#include "tests/common/grammar/test_vocabulary.h"

namespace ultraspeed::grammar {
namespace {

namespace json = boost::json;

TEST(RandomWalk, EndsWithWhatTheSchemaAsksFor) {
  const std::vector<std::string> schemas = {
      "{}",
      R"({"type":"object"})",
      R"({"type":"object","properties":{"title":{"type":"string","minLength":2,"maxLength":9},
          "year":{"type":"integer","minimum":1900,"maximum":2100},
          "price":{"type":"number","minimum":0,"multipleOf":0.05},"dozens":{"type":"integer","multipleOf":12},"score":{"type":"number"},
          "kind":{"enum":["film","series",3,null]},"tags":{"type":"array","items":{"type":"string"},"minItems":1,
          "maxItems":4},"seen":{"type":["boolean","null"]}},"required":["title","year","kind","tags"],
          "additionalProperties":false})",
      R"({"type":"object","properties":{"a":{"type":"integer"},"ab":{"type":"null"},"é":{"const":"x"}},
          "additionalProperties":{"type":"array","items":{"type":"boolean"}}})",
      R"({"$defs":{"node":{"anyOf":[{"type":"object","properties":{"op":{"enum":["+","*"]},
          "args":{"type":"array","items":{"$ref":"#/$defs/node"},"minItems":2}},"required":["op","args"],
          "additionalProperties":false},{"type":"integer"},{"type":"string","maxLength":3}]}},"$ref":"#/$defs/node"})",
      R"({"type":"object","properties":{"v":{"type":"string"},"next":{"anyOf":[{"$ref":"#"},{"type":"null"}]}},
          "required":["v","next"],"additionalProperties":false})",
      R"({"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":{"type":"object","properties":
          {"x":{"type":"number"}},"required":["x","y"]},"minItems":3,"maxItems":6})",
      R"({"oneOf":[{"type":"object","properties":{"k":{"const":"a"},"n":{"type":"integer"}},"required":["k","n"],
          "additionalProperties":false},{"type":"object","properties":{"k":{"const":"b"},"s":{"type":"string"}},
          "required":["k","s"],"additionalProperties":false},{"type":"array","items":{"$ref":"#"}}]})",
  };
  const Vocabulary& vocabulary = *BundledVocabulary();
  for (const std::string& schema : schemas) {
    Constraint constraint(SchemaGrammar(schema), BundledVocabulary());
    const json::value parsed_schema = json::parse(schema);
    size_t bytes_max = 0;
    for (unsigned seed = 0; seed < 25; ++seed) {
      std::mt19937 random(seed);
      const std::string text =
          RandomText(&constraint, vocabulary, static_cast<int>(4 * seed), &random);
      ASSERT_NE(text, "") << schema << " seed " << seed;
      boost::system::error_code error;
      json::parse_options options;
      options.max_depth = limits::kJsonDepthMax;
      const json::value value = json::parse(json::string_view(text), error, {}, options);
      ASSERT_FALSE(error) << error.message() << " seed " << seed << "\n" << text;
      EXPECT_TRUE(IsValid(value, parsed_schema, parsed_schema))
          << schema << " seed " << seed << "\n"
          << text;
      bytes_max = std::max(bytes_max, text.size());
    }
    EXPECT_GT(bytes_max, 20u) << schema;
  }
}

TEST(RandomWalk, OfRandomSchemas) {
  int num_walks = 0;
  for (unsigned seed = 0; seed < 400; ++seed) {
    std::mt19937 random(seed);
    const std::string x = RandomSchema(2, &random), y = RandomSchema(2, &random),
                      root = RandomSchema(3, &random);
    const std::string schema =
        absl::StrCat(R"({"$defs":{"x":)", x, R"(,"y":)", y, R"(},"allOf":[)", root, "]}");
    const auto grammar = FromJsonSchema(schema, "schema");
    if (!grammar.ok()) {
      EXPECT_EQ(grammar.status().message(), "schema: nothing satisfies it") << schema;
      continue;
    }
    const int frames_max = seed % 2 == 0 ? limits::kGrammarFramesMax : 50;
    Constraint constraint(*grammar, BundledVocabulary(), frames_max);
    const json::value parsed_schema = json::parse(schema);
    const std::string text =
        RandomText(&constraint, *BundledVocabulary(), static_cast<int>(seed % 40), &random);
    boost::system::error_code error;
    json::parse_options options;
    options.max_depth = limits::kJsonDepthMax;
    const json::value value = json::parse(json::string_view(text), error, {}, options);
    ASSERT_FALSE(error) << error.message() << " seed " << seed << "\n" << schema << "\n" << text;
    EXPECT_TRUE(IsValid(value, parsed_schema, parsed_schema)) << schema << " seed " << seed << "\n"
                                                              << text;
    ++num_walks;
  }
  EXPECT_GT(num_walks, 300);
}

// The checker itself says no.
TEST(RandomWalk, TheCheckerRefuses) {
  const auto is_valid = [](const char* value, const char* schema) {
    return IsValid(json::parse(value), json::parse(schema), json::parse(schema));
  };
  EXPECT_TRUE(is_valid("[1,2]", R"({"type":"array","items":{"type":"integer"},"maxItems":2})"));
  EXPECT_FALSE(is_valid("[1,2,3]", R"({"type":"array","maxItems":2})"));
  EXPECT_FALSE(is_valid("[1.5]", R"({"items":{"type":"integer"}})"));
  EXPECT_FALSE(is_valid("{}", R"({"required":["a"]})"));
  EXPECT_FALSE(is_valid(R"({"a":1})", R"({"additionalProperties":false})"));
  EXPECT_FALSE(is_valid(R"("abc")", R"({"maxLength":2})"));
  EXPECT_FALSE(is_valid("3", R"({"enum":[1,2]})"));
}

}  // namespace
}  // namespace ultraspeed::grammar
