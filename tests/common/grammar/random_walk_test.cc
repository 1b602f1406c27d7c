// Texts that a model without any sense would write under the masks: they end, and are what the
// schema asks for.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/grammar/constraint.h"
#include "tests/common/grammar/grammar_testing.h"
#include "tests/common/grammar/schema_checker.h"
#include "tests/common/grammar/test_vocabulary.h"

namespace ultraspeed::grammar {
namespace {

namespace json = boost::json;

// Every level that is open may take a handful, and a line break with its indentation.
constexpr int kSteeringTokensMax = 10'000;

// The token that leads to the end soonest, as a rule: what closes something, then what is short.
int32_t SteeringToken(const TokenMask& mask, const Vocabulary& vocabulary) {
  static const std::vector<int32_t>* const order = [&vocabulary] {
    auto* tokens = new std::vector<int32_t>;
    for (int32_t token = 0; token < vocabulary.num_tokens(); ++token) {
      if (vocabulary.is_end(token)) tokens->push_back(token);
    }
    std::string bytes = "\"}]:0123456789nt,{[";
    for (int byte = 0; byte < 256; ++byte) bytes += static_cast<char>(byte);
    for (const char c : bytes) {
      for (int32_t token = 0; token < vocabulary.num_tokens(); ++token) {
        if (vocabulary.bytes(token) == std::string(1, c)) tokens->push_back(token);
      }
    }
    return tokens;
  }();
  for (const int32_t token : *order) {
    if (mask.Allows(token)) return token;
  }
  return -1;
}

std::vector<int32_t> AllowedOf(const TokenMask& mask, const Vocabulary& vocabulary) {
  std::vector<int32_t> tokens;
  for (int32_t token = 0; token < vocabulary.num_tokens(); ++token) {
    if (mask.Allows(token)) tokens.push_back(token);
  }
  return tokens;
}

// Empty if the walk does not end.
std::string Walk(Constraint* constraint, const Vocabulary& vocabulary, int num_random_tokens,
                 std::mt19937* random) {
  State state = constraint->Start();
  std::string text;
  for (int i = 0; i < num_random_tokens + kSteeringTokensMax; ++i) {
    const auto mask = constraint->AllowedTokens(state);
    int32_t token = SteeringToken(*mask, vocabulary);
    if (token < 0) return "";
    if (i < num_random_tokens) {
      // Half of the time one of the few that close or begin something.
      std::vector<int32_t> allowed = AllowedOf(*mask, vocabulary);
      std::erase_if(allowed, [&](int32_t one) { return vocabulary.is_end(one); });
      if (!allowed.empty() && ((*random)() % 2 == 0 || vocabulary.is_end(token))) {
        token = allowed[(*random)() % allowed.size()];
      }
    }
    if (vocabulary.is_end(token)) return text;
    state = constraint->Advance(state, token);
    if (state.is_dead()) return "";
    text += std::string(vocabulary.bytes(token));
  }
  return "";
}

TEST(RandomWalk, EndsWithWhatTheSchemaAsksFor) {
  const std::vector<std::string> schemas = {
      "{}",
      R"({"type":"object"})",
      R"({"type":"object","properties":{"title":{"type":"string","minLength":2,"maxLength":9},
          "year":{"type":"integer","minimum":1900,"maximum":2100},"score":{"type":"number"},
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
      const std::string text = Walk(&constraint, vocabulary, static_cast<int>(4 * seed), &random);
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

// A schema of at most `depth` levels, with references to x and y.
std::string RandomSchema(int depth, std::mt19937* random) {
  const auto pick = [random](int n) { return static_cast<int>((*random)() % n); };
  const auto list = [&](int n) {
    std::vector<std::string> schemas;
    for (int i = 0; i < n; ++i) schemas.push_back(RandomSchema(depth - 1, random));
    return absl::StrJoin(schemas, ",");
  };
  switch (pick(depth > 0 ? 14 : 9)) {
    case 0:
      return R"({"type":["integer","null"]})";
    case 1:
      return R"({"type":"number"})";
    case 2: {
      const int min = pick(5);
      return absl::StrCat(R"({"type":"string","minLength":)", min, R"(,"maxLength":)",
                          min + pick(40), "}");
    }
    case 3:
      return R"({"enum":["a","ab",1,12,null,true,[1],{"x":"é"}]})";
    case 4: {
      const int min = pick(4000) - 2000;
      return absl::StrCat(R"({"type":"integer","minimum":)", min, R"(,"maximum":)",
                          min + pick(3000), "}");
    }
    case 5:
      return pick(2) == 0 ? "{}" : R"({"type":["null","boolean","string"]})";
    case 6:
      return absl::StrCat(R"({"$ref":"#/$defs/)", pick(2) == 0 ? "x" : "y", "\"}");
    case 7: {
      const double min = (pick(4000) - 2000) / 16.0, width = 0.25 + pick(40) / 4.0;
      return absl::StrCat(
          R"({"type":"number",)", pick(2) == 0 ? R"("minimum":)" : R"("exclusiveMinimum":)", min,
          pick(2) == 0 ? R"(,"maximum":)" : R"(,"exclusiveMaximum":)", min + width, "}");
    }
    case 8: {
      constexpr const char* kPatterns[] = {
          R"("^[a-z]{2,5}(-[0-9]+)?$")",
          R"("b","maxLength":20)",
          R"("^a|z$","maxLength":6)",
          R"("^([A-Z][a-z]* )*[A-Z]\\.$","minLength":3,"maxLength":12)",
          R"("^[^x\\\\]*$")",
          R"("^(a|ab)(c|bcd)*$")"};
      return absl::StrCat(R"({"type":"string","pattern":)", kPatterns[pick(6)], "}");
    }
    case 9:
    case 10: {
      std::vector<std::string> properties, required;
      for (const char* name : {"a", "ab", "é", "q\\\""}) {
        if (pick(2) == 0) continue;
        properties.push_back(absl::StrCat("\"", name, "\":", RandomSchema(depth - 1, random)));
        if (pick(2) == 0) required.push_back(absl::StrCat("\"", name, "\""));
      }
      const std::string others = pick(3) == 0   ? "true"
                                 : pick(2) == 0 ? "false"
                                                : RandomSchema(depth - 1, random);
      return absl::StrCat(R"({"type":"object","properties":{)", absl::StrJoin(properties, ","),
                          R"(},"required":[)", absl::StrJoin(required, ","),
                          R"(],"additionalProperties":)", others, "}");
    }
    case 11:
    case 12: {
      const int min = pick(4);
      const std::string first =
          pick(3) == 0 ? absl::StrCat(R"("prefixItems":[)", list(1 + pick(3)), "],") : "";
      const std::string others = pick(8) == 0 ? "false" : RandomSchema(depth - 1, random);
      return absl::StrCat(R"({"type":"array",)", first, R"("minItems":)", min, R"(,"maxItems":)",
                          min + pick(3), R"(,"items":)", others, "}");
    }
    default:
      return absl::StrCat(R"({"anyOf":[)", list(1 + pick(3)), "]}");
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
        Walk(&constraint, *BundledVocabulary(), static_cast<int>(seed % 40), &random);
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
