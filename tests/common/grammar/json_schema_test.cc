#include "common/grammar/json_schema.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "tests/common/grammar/grammar_testing.h"

namespace ultraspeed::grammar {
namespace {

struct Case {
  const char* schema;
  std::vector<std::string> accepted;
  std::vector<std::string> refused;
};

void Check(const std::vector<Case>& cases) {
  for (const Case& one : cases) {
    const auto grammar = SchemaGrammar(one.schema);
    if (grammar == nullptr) continue;
    for (const std::string& text : one.accepted) {
      EXPECT_EQ(NumAccepted(grammar, text), text.size() + 1) << one.schema << "\n" << text;
    }
    for (const std::string& text : one.refused) {
      EXPECT_FALSE(Accepts(grammar, text)) << one.schema << "\n" << text;
    }
  }
}

TEST(JsonSchema, Types) {
  Check({
      {R"({"type":"string"})",
       {R"("")", R"("a b")"},
       {"", "a", R"("a)", "1", R"("a" )", R"( "a")"}},
      {R"({"type":"boolean"})", {"true", "false"}, {"True", "t", "null", "truefalse"}},
      {R"({"type":"null"})", {"null"}, {"nul", "0"}},
      {R"({"type":["string","null"]})", {"null", R"("x")"}, {"1", "[]"}},
      {R"({"type":"integer"})",
       {"0", "-0", "7", "-12", "999999999999999999"},
       {"", "-", "01", "1.0", "1e2", "+1", "1000000000000000000"}},
      {R"({"type":"number"})",
       {"0", "-0.5", "12.25", "1e5", "1E+05", "3.0e-12", "0.0"},
       {"", ".5", "1.", "1e", "1e+", "00", "-", "0x1", "1e100", "NaN", "1.0000000000000000000"}},
      {R"({"type":"array"})", {"[]", "[1,\"a\",[],{}]"}, {"[", "[1", "[1,]", "[,]", "{}", "[1 2]"}},
      {R"({"type":"object"})",
       {"{}", R"({"a":1})", R"({"a":{"b":[null]},"c":true})"},
       {"{", "[]", R"({"a"})", R"({"a":})", R"({"a":1,})", R"({a:1})", R"({,"a":1})"}},
      {"{}", {"1", "\"a\"", "null", "{\"a\":[1]}", "[[[]]]"}, {"", "x", "1,", "[1]]"}},
      {"true", {"1", "{}"}, {""}},
      {R"({"description":"anything","x-order":3})", {"1", "{}"}, {""}},
  });
}

TEST(JsonSchema, Properties) {
  const char* strict = R"({"type":"object","properties":{"a":{"type":"integer"},
      "b":{"type":"string"},"c":{"type":"null"}},"required":["a","c"],"additionalProperties":false})";
  const char* open = R"({"properties":{"ab":{"type":"integer"}, "é":{"type":"null"}}})";
  Check({
      {strict,
       {R"({"a":1,"b":"x","c":null})", R"({"a":1,"c":null})", R"({ "a": 1, "c": null })"},
       {"{}", R"({"a":1})", R"({"c":null,"a":1})", R"({"a":1,"c":null,"d":1})",
        R"({"a":"1","c":null})", R"({"a":1,"a":1,"c":null})", R"({"a":1,"c":null,})",
        R"({"b":"x","a":1,"c":null})"}},
      {open,
       {"{}", R"({"ab":1})", R"({"a":"x"})", R"({"abc":"x","b":[]})", R"({"ab":1,"é":null,"z":0})",
        R"({"":1})", R"({"è":1,"ê":{}})", R"({"a\"b":1,"\\":2})", R"({"é":null})"},
       {R"({"ab":"x"})", R"({"z":0,"ab":"x"})", R"({"z":0,"ab":1})", R"({"\u0061b":"x"})",
        R"({"é":1})", R"({"ab":1,"ab":2})", R"({"a\/":1})"}},
      {R"({"type":"object","additionalProperties":{"type":"boolean"}})",
       {"{}", R"({"x":true,"y":false})", R"({"\u0041":true})"},
       {R"({"x":1})", R"({"x":true,"y":null})"}},
      {R"({"type":"object","properties":{"a":{}},"required":["b"],"additionalProperties":{"type":"null"}})",
       {R"({"b":null})", R"({"a":[1],"b":null,"c":null})"},
       {"{}", R"({"a":1})", R"({"b":1})", R"({"b":null,"a":1})"}},
      {R"({"type":"object","properties":{"a":false,"b":true},"additionalProperties":false})",
       {"{}", R"({"b":1})"},
       {R"({"a":1})"}},
      {R"({"type":"object","properties":{},"additionalProperties":false})",
       {"{}", "{\n}"},
       {R"({"a":1})"}},
      {R"({"type":"object","properties":{"q\"\n":{"const":1}},"additionalProperties":false})",
       {R"({"q\"\n":1})"},
       {R"({"q":1})"}},
  });
}

TEST(JsonSchema, Whitespace) {
  const std::string indent(32, ' ');
  Check({{R"({"type":"object","properties":{"a":{"type":"array"}},"additionalProperties":false})",
          {R"({"a":[]})", "{\n  \"a\": [\n\t\t1,\n\t\t2\n  ]\n}",
           "{\n" + indent + "\"a\" : [ 1 , 2 ] }"},
          {"{  }", "{\n\n}", "{\n" + indent + " }", "{\r\n}", "{\t}", " {}", "{} ", "\n{}"}}});
}

TEST(JsonSchema, Items) {
  Check({
      {R"({"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":3})",
       {"[1,2]", "[1,2,3]", "[ 1, 2 ]"},
       {"[]", "[1]", "[1,2,3,4]", "[1,2,]", "[1,\"a\"]"}},
      {R"({"type":"array","items":{"type":"null"},"minItems":1})",
       {"[null]", "[null,null,null]"},
       {"[]"}},
      {R"({"type":"array","maxItems":0})", {"[]", "[ ]"}, {"[1]"}},
      {R"({"type":"array","items":false})", {"[]"}, {"[1]"}},
      {R"({"prefixItems":[{"type":"integer"},{"type":"string"}],"items":{"type":"null"}})",
       {"[]", "[1]", "[1,\"a\"]", "[1,\"a\",null,null]"},
       {"[\"a\"]", "[1,null]", "[1,\"a\",1]"}},
      {R"({"prefixItems":[{"type":"integer"},{"type":"string"}],"items":false,"minItems":2})",
       {"[1,\"a\"]"},
       {"[]", "[1]", "[1,\"a\",1]"}},
      {R"({"prefixItems":[{"type":"integer"}],"items":{"type":"null"},"minItems":2,"maxItems":3})",
       {"[1,null]", "[1,null,null]"},
       {"[]", "[1]", "[null,null]", "[1,null,null,null]"}},
      {R"({"prefixItems":[{"type":"integer"},{"type":"null"}],"maxItems":1})",
       {"[]", "[1]"},
       {"[1,null]"}},
      {R"({"items":{"type":"integer"},"maxItems":1000000,"minItems":4})",
       {"[1,2,3,4]"},
       {"[1,2,3]"}},
  });
}

TEST(JsonSchema, EnumAndConst) {
  Check({
      {R"({"enum":["red","redder",1,12,null,true,{"a":[1.5,"é"]}]})",
       {R"("red")", R"("redder")", "1", "12", "null", "true", R"({"a":[1.5,"é"]})"},
       {R"("re")", R"("reddest")", "2", "123", "false", "{}", R"({"a": [1.5,"é"]})"}},
      {R"({"type":"string","enum":["a",1,"b"]})", {R"("a")", R"("b")"}, {"1"}},
      {R"({"type":["integer","null"],"enum":["a",1,1.5,2.0,null]})",
       {"1", "2", "null"},
       {R"("a")", "1.5"}},
      {R"({"const":"a\"b\n"})", {R"("a\"b\n")"}, {R"("a")"}},
      {R"({"const":[]})", {"[]"}, {"[ ]", "{}"}},
      {R"({"const":1e300})", {"1e+300"}, {"1"}},
      {R"({"const":18446744073709551615})", {"18446744073709551615"}, {"18446744073709551614"}},
  });
}

TEST(JsonSchema, Alternatives) {
  Check({
      {R"({"anyOf":[{"type":"integer"},{"type":"object","properties":{"a":{"const":1}},"required":["a"]}]})",
       {"7", R"({"a":1})"},
       {"\"a\"", R"({"a":2})", "{}"}},
      {R"({"oneOf":[{"type":"integer"},{"type":"number"}]})", {"7", "7.5"}, {"\"a\""}},
      {R"({"allOf":[{"type":"integer"}],"title":"T"})", {"7"}, {"7.5"}},
      {R"({"anyOf":[{"type":"object","properties":{"k":{"const":"a"},"x":{"type":"integer"}},"required":["k","x"]},
                    {"type":"object","properties":{"k":{"const":"b"},"y":{"type":"string"}},"required":["k","y"]}]})",
       {R"({"k":"a","x":1})", R"({"k": "b", "y": ""})"},
       {R"({"k":"a","y":""})", R"({"k":"b","x":1})"}},
  });
}

TEST(JsonSchema, References) {
  const char* tree = R"({"$defs":{"tree":{"type":"object","properties":{"v":{"type":"integer"},
      "kids":{"type":"array","items":{"$ref":"#/$defs/tree"}}},"required":["v","kids"],
      "additionalProperties":false}},"$ref":"#/$defs/tree"})";
  const char* list = R"({"type":"object","properties":{"v":{"$ref":"#/definitions/a~1b"},
      "next":{"anyOf":[{"$ref":"#"},{"type":"null"}]}},"required":["v","next"],
      "definitions":{"a/b":{"type":"integer","description":"d"}},"additionalProperties":false})";
  Check({
      {tree,
       {R"({"v":1,"kids":[]})",
        R"({"v":1,"kids":[{"v":2,"kids":[{"v":3,"kids":[]}]},{"v":4,"kids":[]}]})"},
       {R"({"v":1})", R"({"v":1,"kids":[1]})", R"({"v":1,"kids":[{"v":2}]})"}},
      {list,
       {R"({"v":1,"next":null})", R"({"v":1,"next":{"v":2,"next":{"v":3,"next":null}}})"},
       {R"({"v":1,"next":2})", R"({"v":1,"next":{"v":2,"next":null})"}},
      {R"({"anyOf":[{"$ref":"#"},{"type":"null"}]})", {"null"}, {"1"}},
  });
}

TEST(JsonSchema, Lengths) {
  const std::string smile = "\xF0\x9F\x98\x80";
  Check({
      {R"({"type":"string","minLength":2,"maxLength":3})",
       {R"("ab")", R"("abc")", "\"é" + smile + "\"", R"("\n\u00e9\"")", R"("\ud83d\ude00a")"},
       {R"("")", R"("a")", R"("abcd")", "\"" + smile + "\"", R"("\ud83d\ude00")"}},
      {R"({"minLength":1})", {R"("a")", R"("abcdef")"}, {R"("")", "1"}},
      {R"({"type":["string","null"],"maxLength":0})", {R"("")", "null"}, {R"("a")"}},
      {R"({"type":"string","maxLength":4000000000})", {R"("")", R"("abc")"}, {"\""}},
  });
}

TEST(JsonSchema, IntegerBounds) {
  struct Bounds {
    std::string schema;
    int64_t min, max;
  };
  for (const Bounds& bounds : std::vector<Bounds>{
           {R"("minimum":0,"maximum":0)", 0, 0},
           {R"("minimum":-7,"maximum":12)", -7, 12},
           {R"("minimum":3,"maximum":1234)", 3, 1234},
           {R"("minimum":-1203,"maximum":-78)", -1203, -78},
           {R"("exclusiveMinimum":9,"exclusiveMaximum":101)", 10, 100},
           {R"("minimum":0.5,"maximum":99.5)", 1, 99},
           {R"("exclusiveMinimum":0.5,"exclusiveMaximum":99.5)", 1, 99},
           {R"("minimum":5.0,"exclusiveMinimum":-3,"maximum":200,"exclusiveMaximum":120)", 5, 119},
           {R"("minimum":998)", 998, 2000},
           {R"("maximum":-98)", -2000, -98},
       }) {
    const auto grammar = SchemaGrammar(absl::StrCat(R"({"type":"integer",)", bounds.schema, "}"));
    ASSERT_NE(grammar, nullptr);
    for (int64_t number = -2000; number <= 2000; ++number) {
      EXPECT_EQ(Accepts(grammar, absl::StrCat(number)),
                bounds.min <= number && number <= bounds.max)
          << bounds.schema << " " << number;
    }
    for (const char* text : {"-0", "00", "007", "-", "1.0", "-07"}) {
      EXPECT_FALSE(Accepts(grammar, text)) << bounds.schema << " " << text;
    }
  }
  Check({
      {R"({"type":"integer","minimum":-9223372036854775807,"maximum":9223372036854775806})",
       {"-9223372036854775807", "9223372036854775806"},
       {"-9223372036854775808", "9223372036854775807", "10000000000000000000"}},
      {R"({"type":"integer","minimum":1000000000000000001})",
       {"1000000000000000001"},
       {"1000000000000000000"}},
      {R"({"type":["integer","null"],"minimum":1})", {"1", "999999999999999999", "null"}, {"0"}},
  });
}

// A type that is not allowed has nothing to say, and no subschema that is looked at.
TEST(JsonSchema, KeywordsOfOtherTypes) {
  Check({{R"({"type":"string","minimum":3,"items":{"not":{}},"uniqueItems":false})",
          {R"("a")"},
          {"4"}}});
}

TEST(JsonSchema, NestingIsBounded) {
  const auto grammar = SchemaGrammar("{}");
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(Accepts(grammar, nested(limits::kGrammarStackDepthMax - 1)));
  EXPECT_FALSE(Accepts(grammar, nested(limits::kGrammarStackDepthMax + 1)));
  // What was begun can be ended: at the last level there is room for the value of a list's end.
  const auto list = SchemaGrammar(R"({"type":"object","properties":{"next":{"anyOf":[{"$ref":"#"},
      {"type":"null"}]},"v":{"type":"string","maxLength":1}},"required":["next","v"]})");
  std::string text, end;
  while (NumAccepted(list, text + R"({"next":{)") > text.size() + 8) {
    text += R"({"next":)";
    end += R"(,"v":""})";
  }
  EXPECT_GT(end.size(), 8 * 50u);
  EXPECT_TRUE(Accepts(list, text + "null" + end));
}

TEST(JsonSchema, AnyJsonObject) {
  const auto grammar = AnyJsonObject();
  EXPECT_TRUE(Accepts(grammar, R"({"a":[1,{"b":"c"}],"\u0041":null})"));
  EXPECT_TRUE(Accepts(grammar, "{}"));
  EXPECT_FALSE(Accepts(grammar, "[]"));
  EXPECT_FALSE(Accepts(grammar, "1"));
}

// Readings that multiply with every level have their frames in common.
TEST(JsonSchema, AmbiguousSchemasStaySmall) {
  std::string alternatives = R"({"type":"null"})";
  for (int i = 0; i < 120; ++i) {
    absl::StrAppend(&alternatives, R"(,{"type":"array","items":{"$ref":"#"},"minItems":)", i, "}");
  }
  const auto grammar = SchemaGrammar(absl::StrCat(R"({"anyOf":[)", alternatives, "]}"));
  Automaton automaton(grammar);
  const State state = automaton.Advance(automaton.Start(), std::string(60, '['));
  EXPECT_FALSE(state.is_dead());
  EXPECT_TRUE(automaton.Advance(state, std::string(60, ']')).can_end());
  EXPECT_LT(automaton.table().num_frames(), 200'000u);
}

}  // namespace
}  // namespace ultraspeed::grammar
