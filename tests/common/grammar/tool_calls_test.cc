// The grammar of calls: what is written by it is read by the parser of calls as arguments that are
// valid against the tool's schema.
#include "common/grammar/tool_calls.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "router/tool_call_parser.h"
#include "tests/common/grammar/grammar_testing.h"
#include "tests/common/grammar/random_texts.h"
#include "tests/common/grammar/schema_checker.h"

namespace ultraspeed::grammar {
namespace {

namespace json = boost::json;

std::shared_ptr<const Grammar> CallGrammar(const std::vector<CallableTool>& tools) {
  const auto grammar = FromTools(tools, "tools");
  EXPECT_TRUE(grammar.ok()) << grammar.status();
  return grammar.ok() ? *grammar : nullptr;
}

std::string Call(const std::string& name, const std::string& parameters) {
  return absl::StrCat("\n<function=", name, ">\n", parameters, "</function>\n");
}

std::string Parameter(const std::string& name, const std::string& value) {
  return absl::StrCat("<parameter=", name, ">", value, "</parameter>\n");
}

// What callers are given of a call's body.
std::string ReadArguments(const std::string& body, const std::string& name,
                          const std::string& schema) {
  const router::FunctionTypes types = {{name, router::ParameterTypesOf(schema)}};
  router::ToolCallParser parser(&types, "<tool_call>");
  const router::ToolCallParser::Piece first = parser.Append(body), last = parser.Finish();
  EXPECT_EQ(first.name, name);
  EXPECT_EQ(first.text + last.text, "");
  return first.arguments + last.arguments;
}

// A strict tool of one parameter `p`: which texts it may be, and what they are read as.
struct Case {
  const char* schema;
  std::vector<std::pair<std::string, std::string>> accepted;
  std::vector<std::string> refused;
};

TEST(ToolCalls, ArgumentsAreReadAsWhatTheSchemaAllows) {
  const std::vector<Case> cases = {
      {R"({"type":"string","description":"free"})",
       {{"", R"("")"},
        {" a\n<b> \"x\" ", R"(" a\n<b> \"x\" ")"},
        {"5", R"("5")"},
        {"null", R"("null")"}},
       {"a\xFF"}},
      {R"({"type":"string","minLength":2,"maxLength":3})",
       {{"ab", R"("ab")"}, {"€é\n", R"("€é\n")"}, {"</p", R"("</p")"}},
       {"a", "abcd", ""}},
      {R"({"enum":["a","b c","</parameter>x"]})",
       {{"a", R"("a")"}, {"b c", R"("b c")"}},
       {"", "c", "\"a\"", "</parameter>x"}},
      {R"({"type":"string","pattern":"^[a-z<]+\\n?$","maxLength":4})",
       {{"ab", R"("ab")"}, {"abc\n", R"("abc\n")"}},
       {"", "a<b", "Ab", "abcde"}},
      {R"({"type":"string","format":"date"})", {{"2026-11-29", R"("2026-11-29")"}}, {"today"}},
      {R"({"anyOf":[{"type":"string","pattern":"^.[0-9]*$"},{"type":"integer","maximum":9}]})",
       {{"x1", R"("x1")"}, {"7", "7"}},
       {"17", " 1"}},
      {R"({"type":"integer","minimum":0})",
       {{"0", "0"}, {"17", "17"}},
       {"-1", "x", "", " 1", "1 ", "\"1\"", "1.0"}},
      {R"({"type":"number"})", {{"-1.5e3", "-1.5e3"}}, {"x", "True"}},
      {R"({"type":"boolean"})",
       {{"true", "true"}, {"True", "true"}, {"False", "false"}},
       {"yes", "null"}},
      {R"({"type":"array","items":{"enum":["x","y"]},"minItems":1})",
       {{R"(["x", "y"])", R"(["x", "y"])"}},
       {"[]", "['x']", "x", R"(["z"])"}},
      {R"({"type":"object","properties":{"k":{"type":"string"}},"required":["k"],"additionalProperties":false})",
       {{R"({"k": "</parameter>"})", R"({"k": "</parameter>"})"}},
       {"{}", "k"}},
      // Of types with all their values, strings may be anything: what is read as another is valid.
      {R"({"type":["string","null"]})",
       {{"", R"("")"},
        {"None", "null"},
        {"null", "null"},
        {"nullx", R"("nullx")"},
        {"5", R"("5")"}},
       {}},
      {R"({"anyOf":[{"type":"string","maxLength":4},{"type":"integer"}]})",
       {{"5", "5"}, {"12345", "12345"}, {"1.5", R"("1.5")"}, {"a", R"("a")"}},
       {"abcde"}},
      {"{}", {{"x", R"("x")"}, {"[1]", "[1]"}, {" true", "true"}}, {}},
      {"true", {{"x", R"("x")"}}, {}},
      // Of others they do not begin like those.
      {R"({"anyOf":[{"type":"string"},{"type":"array","items":{"type":"string"}}]})",
       {{"a b", R"("a b")"},
        {R"(["a"])", R"(["a"])"},
        {"{", R"("{")"},
        {"5", R"("5")"},
        {"", R"("")"}},
       {"[1]", " [1]", "[", " a"}},
      {R"({"anyOf":[{"type":"string"},{"type":"integer","minimum":0},{"type":"null"}]})",
       {{"a", R"("a")"}, {"7", "7"}, {"None", "null"}, {"", R"("")"}},
       {"-7", "1.5", "07"}},
      {R"({"anyOf":[{"type":"string"},{"const":true}]})",
       {{"True", "true"}, {"a", R"("a")"}},
       {"false", "False"}},
      {R"({"type":["string","integer","null"],"enum":["a","5","None","null",6,null]})",
       {{"a", R"("a")"}, {"6", "6"}, {"null", "null"}, {"None", "null"}},
       {"5", "b", "7"}},
      {R"({"enum":["auto",true,2.5]})",
       {{"auto", R"("auto")"}, {"True", "true"}, {"2.5", "2.5"}},
       {"false", "2"}},
  };
  for (const Case& one : cases) {
    const std::string schema = absl::StrCat(R"({"type":"object","properties":{"p":)", one.schema,
                                            R"(},"required":["p"]})");
    const auto grammar = CallGrammar({{"f", true, schema}});
    ASSERT_NE(grammar, nullptr) << one.schema;
    for (const auto& [text, value] : one.accepted) {
      const std::string call = Call("f", Parameter("p", text));
      EXPECT_TRUE(Accepts(grammar, call)) << one.schema << " " << text;
      const std::string arguments = ReadArguments(call, "f", schema);
      EXPECT_EQ(arguments, absl::StrCat(R"({"p":)", value, "}")) << one.schema;
      const json::value parsed = json::parse(schema);
      EXPECT_TRUE(IsValid(json::parse(arguments), parsed, parsed)) << one.schema << " " << text;
    }
    for (const std::string& text : one.refused) {
      EXPECT_FALSE(Accepts(grammar, Call("f", Parameter("p", text)))) << one.schema << " " << text;
    }
  }
}

TEST(ToolCalls, AreOfTheToolsThatThereAre) {
  const std::string schema =
      R"({"properties":{"a":{"type":"integer"},"b":{"type":"string"},"c":{"type":"null"}},"required":["b"]})";
  const auto grammar = CallGrammar({{"get", true, schema},
                                    {"get_all", true, ""},
                                    {"free", false, R"({"properties":{"a":false}})"}});
  const std::string a = Parameter("a", "1"), b = Parameter("b", "x"), c = Parameter("c", "null");
  for (const std::string& parameters : {b, a + b, b + c, a + b + c})
    EXPECT_TRUE(Accepts(grammar, Call("get", parameters))) << parameters;
  for (const std::string& parameters :
       {std::string(), a, a + c, b + a, b + b, a + b + Parameter("d", "1"), "\n" + b, b + "\n"}) {
    EXPECT_FALSE(Accepts(grammar, Call("get", parameters))) << parameters;
  }
  EXPECT_TRUE(Accepts(grammar, Call("get_all", "")));
  EXPECT_FALSE(Accepts(grammar, Call("get_all", a)));
  EXPECT_FALSE(Accepts(grammar, Call("get_", "")));
  EXPECT_FALSE(Accepts(grammar, Call("", "")));
  for (const std::string& parameters : {std::string(), a + a, Parameter("any key", "<x>") + b})
    EXPECT_TRUE(Accepts(grammar, Call("free", parameters))) << parameters;
  EXPECT_FALSE(Accepts(grammar, Call("free", "x")));
  const std::string call = Call("get", b);
  for (const std::string& text : {call.substr(1), call + "\n", call + call, " " + call})
    EXPECT_FALSE(Accepts(grammar, text)) << text;
}

TEST(ToolCalls, RefusalsNameThePlace) {
  const auto error = [](const std::string& schema) {
    return std::string(
        FromTools({{"f", false, "tt"}, {"g", true, schema}}, "tools").status().message());
  };
  const std::string at = "tools[1].parameters_json";
  EXPECT_EQ(error("[]"), at + ": is no object");
  EXPECT_EQ(error(R"({"type":"array"})"), at + ": \"type\" is not \"object\"");
  for (const char* keyword : {"anyOf", "$ref", "enum"}) {
    EXPECT_EQ(
        error(absl::StrCat(R"({"type":"object",")", keyword, R"(":[]})")),
        absl::StrCat(at, ": \"", keyword, "\" is not supported of a tool's parameters together"));
  }
  EXPECT_EQ(
      error(R"({"additionalProperties":{"type":"string"}})"),
      at + ": \"additionalProperties\" of a tool's parameters is supported if true or false only");
  EXPECT_EQ(error(R"({"minProperties":1})"), at + ": \"minProperties\" is not supported");
  EXPECT_EQ(error(R"({"required":["a"]})"),
            at + ": \"required\" names \"a\", which \"properties\" has not");
  EXPECT_EQ(error(R"({"properties":{"a>b":{}}})"),
            at + ".properties.a>b: \">\" in a parameter's name is not supported");
  EXPECT_EQ(error(R"({"properties":{"a":{"type":"string","not":{}}}})"),
            at + ".properties.a: \"not\" is not supported");
  EXPECT_EQ(error(R"({"properties":{"a":{"anyOf":[{"type":"null"},{"items":{"not":{}}}]}}})"),
            at + ".properties.a.anyOf[1].items: \"not\" is not supported");
  EXPECT_EQ(
      error(R"({"properties":{"a":{"$ref":"#/$defs/x"}},"$defs":{"x":{"format":"x","if":1}}})"),
      at + ".$defs.x: \"if\" is not supported");
  EXPECT_EQ(error(R"({"properties":{"a":false},"required":["a"]})"), at + ": nothing satisfies it");
  EXPECT_EQ(error(R"({"properties":{"a":{"enum":["</parameter>"]}},"required":["a"]})"),
            at + ": nothing satisfies it");
}

TEST(ToolCalls, SchemasHaveABoundTogether) {
  const std::string schema =
      absl::StrCat(R"({"title":")", std::string(limits::kSchemaBytesMax - 12, 't'), "\"}");
  const CallableTool strict = {"f", true, schema}, free = {"g", false, schema};
  EXPECT_TRUE(FromTools({strict, free, strict}, "tools").ok());
  EXPECT_EQ(
      FromTools({strict, strict, free, strict}, "tools").status().message(),
      "tools: strict ones have schemas of 393216 bytes together; at most 262144 are supported");
}

// What agents send: everything that real schemas have.
TEST(ToolCalls, ASchemaOfAnAgent) {
  const std::string schema =
      R"({"$schema":"http://json-schema.org/draft-07/schema#","type":"object","title":"Edit",
      "description":"Edits a file","properties":{
        "path":{"type":"string","description":"absolute","format":"path"},
        "mode":{"type":"string","enum":["replace","append"],"default":"replace"},
        "edits":{"type":"array","minItems":1,"items":{"$ref":"#/$defs/Edit"}},
        "dry_run":{"anyOf":[{"type":"boolean"},{"type":"null"}],"default":null},
        "tags":{"type":"array","items":{"type":"string","enum":["a","b"]}},
        "timeout":{"type":["integer","null"],"minimum":1,"maximum":600}},
      "required":["path","edits"],"additionalProperties":false,
      "$defs":{"Edit":{"type":"object","properties":{"old":{"type":"string"},"new":{"type":"string"},
        "where":{"anyOf":[{"$ref":"#/$defs/Edit"},{"type":"null"}]}},"required":["old","new"],"additionalProperties":false}}})";
  const auto grammar = CallGrammar({{"edit", true, schema}});
  const std::string call = Call(
      "edit",
      Parameter("path", "/tmp/a b.txt") +
          Parameter("edits", R"([{"old": "x\ny", "new": "", "where": {"old": "", "new": "z"}}])") +
          Parameter("dry_run", "None") + Parameter("timeout", "60"));
  EXPECT_TRUE(Accepts(grammar, call));
  EXPECT_EQ(
      ReadArguments(call, "edit", schema),
      R"({"path":"/tmp/a b.txt","edits":[{"old": "x\ny", "new": "", "where": {"old": "", "new": "z"}}],)"
      R"("dry_run":null,"timeout":60})");
  EXPECT_FALSE(
      Accepts(grammar, Call("edit", Parameter("path", "x") + Parameter("mode", "replace"))));
}

// Whatever a model chooses.
TEST(ToolCalls, RandomCallsOfRandomSchemas) {
  const std::vector<std::string> closers = {"</parameter>\n", "</function>\n"};
  int num_calls = 0;
  for (unsigned seed = 0; seed < 150; ++seed) {
    std::mt19937 random(seed);
    std::vector<std::string> properties, required;
    for (const char* name : {"a", "ab", "é", "a b"}) {
      if (random() % 4 == 0) continue;
      properties.push_back(absl::StrCat("\"", name, "\":", RandomSchema(2, &random)));
      if (random() % 2 == 0) required.push_back(absl::StrCat("\"", name, "\""));
    }
    const std::string schema = absl::StrCat(
        R"({"type":"object","$defs":{"x":)", RandomSchema(2, &random), R"(,"y":)",
        RandomSchema(1, &random), R"(},"properties":{)", absl::StrJoin(properties, ","),
        R"(},"required":[)", absl::StrJoin(required, ","), R"(],"additionalProperties":false})");
    const auto grammar = FromTools({{"f", true, schema}}, "tools");
    if (!grammar.ok()) {
      EXPECT_EQ(grammar.status().message(), "tools[0].parameters_json: nothing satisfies it");
      continue;
    }
    Constraint constraint(*grammar, BundledVocabulary());
    const std::string call = RandomText(&constraint, *BundledVocabulary(),
                                        12 + static_cast<int>(seed % 60), &random, closers);
    ASSERT_NE(call, "") << seed << " " << schema;
    const std::string arguments = ReadArguments(call, "f", schema);
    boost::system::error_code error;
    json::parse_options options;
    options.max_depth = limits::kJsonDepthMax + 1;
    const json::value value = json::parse(json::string_view(arguments), error, {}, options);
    ASSERT_FALSE(error) << seed << "\n" << call << "\n" << arguments;
    const json::value parsed = json::parse(schema);
    EXPECT_TRUE(IsValid(value, parsed, parsed)) << seed << "\n" << schema << "\n" << call;
    ++num_calls;
  }
  EXPECT_GT(num_calls, 90);
}

}  // namespace
}  // namespace ultraspeed::grammar
