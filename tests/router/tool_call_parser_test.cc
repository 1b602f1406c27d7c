#include "router/tool_call_parser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "router/json_text.h"
#include "tests/router/test_tokenizer.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

const FunctionTypes& Types() {
  static const FunctionTypes types = {{"f", ParameterTypesOf(R"({"type":"object","properties":{
         "text":{"type":"string"}, "word":{"enum":["a","b"]}, "count":{"type":"integer"},
         "on":{"type":"boolean"}, "list":{"type":"array"}, "map":{"type":"object"},
         "maybe":{"type":["string","null"]}, "either":{"anyOf":[{"type":"string"},{"type":"number"}]},
         "any":{}, "never":{"type":"string","enum":[1]}}})")}};
  return types;
}

struct Parsed {
  std::string name, arguments, text;
};

void Add(const ToolCallParser::Piece& piece, Parsed* parsed) {
  EXPECT_TRUE(piece.name.empty() || (parsed->name.empty() && parsed->arguments.empty()));
  absl::StrAppend(&parsed->name, piece.name);
  absl::StrAppend(&parsed->arguments, piece.arguments);
  absl::StrAppend(&parsed->text, piece.text);
}

Parsed Parse(const std::string& body) {
  Parsed parsed;
  ToolCallParser parser(&Types(), "<tool_call>");
  Add(parser.Append(body), &parsed);
  Add(parser.Finish(), &parsed);
  EXPECT_EQ(parser.is_call(), !parsed.name.empty());
  return parsed;
}

std::string Parameter(const std::string& name, const std::string& value) {
  return absl::StrCat("<parameter=", name, ">", value, "</parameter>\n");
}

std::string Call(const std::string& parameters) {
  return absl::StrCat("\n<function=f>\n", parameters, "</function>\n");
}

std::string Arguments(const std::string& parameters) {
  const Parsed parsed = Parse(Call(parameters));
  EXPECT_EQ(parsed.name, "f");
  EXPECT_EQ(parsed.text, "");
  return parsed.arguments;
}

TEST(ToolCallParser, ACallAsTheTemplateWritesIt) {
  EXPECT_EQ(Arguments(Parameter("text", "Paris") + Parameter("count", "3")),
            R"({"text":"Paris","count":3})");
  EXPECT_EQ(Arguments(""), "{}");
  EXPECT_EQ(Parse("<function=other><parameter=a>1</parameter></function>").arguments, R"({"a":1})");
}

TEST(ToolCallParser, ValuesAreReadByTheirSchema) {
  EXPECT_EQ(Arguments(Parameter("text", " 3\n") + Parameter("word", "true")),
            R"({"text":" 3\n","word":"true"})");
  EXPECT_EQ(Arguments(Parameter("count", " 3 ") + Parameter("count", "three")),
            R"({"count":3,"count":"three"})");
  EXPECT_EQ(Arguments(Parameter("on", "True") + Parameter("on", "false") + Parameter("on", "1")),
            R"({"on":true,"on":false,"on":"1"})");
  EXPECT_EQ(Arguments(Parameter("list", "[1, \"x\"]") + Parameter("map", "{\"a\": {}}")),
            R"({"list":[1, "x"],"map":{"a": {}}})");
  EXPECT_EQ(Arguments(Parameter("list", "[1,") + Parameter("map", "[]")),
            R"({"list":"[1,","map":"[]"})");
  EXPECT_EQ(
      Arguments(Parameter("maybe", "None") + Parameter("maybe", "null") + Parameter("maybe", "5")),
      R"({"maybe":null,"maybe":null,"maybe":"5"})");
  EXPECT_EQ(Arguments(Parameter("either", "5") + Parameter("either", "null")),
            R"({"either":5,"either":"null"})");
  EXPECT_EQ(Arguments(Parameter("any", "1e3") + Parameter("any", "\"q\"") + Parameter("any", "x")),
            R"({"any":1e3,"any":"\"q\"","any":"x"})");
  EXPECT_EQ(Arguments(Parameter("unknown", "[null]") + Parameter("never", "1")),
            R"({"unknown":[null],"never":1})");
}

TEST(ToolCallParser, ValuesAreTakenAsTheyAre) {
  const std::string code = "if a < b && c > d:\n\tprint(\"</function>\", '\\\\n &amp; é🙂')\n";
  const std::string arguments = Arguments(Parameter("text", code));
  EXPECT_EQ(json::parse(arguments).at("text").as_string(), code);
  const std::string nested = "a</parameter> b <parameter=x>y</parameter>z";
  EXPECT_EQ(json::parse(Arguments(Parameter("text", nested))).at("text").as_string(), nested);
}

TEST(ToolCallParser, WhatIsMissingIsMadeUpFor) {
  const Parsed no_end = Parse("<function=f><parameter=text>ab");
  EXPECT_EQ(no_end.arguments, R"({"text":"ab"})");
  EXPECT_EQ(Parse("<function=f><parameter=text>ab</parameter>").arguments, R"({"text":"ab"})");
  EXPECT_EQ(Parse("<function=f><parameter=text>ab</param").arguments, R"({"text":"ab</param"})");
  EXPECT_EQ(Parse("<function=f><parameter=count>7").arguments, R"({"count":7})");
  EXPECT_EQ(Parse("<function=f>").arguments, "{}");
  EXPECT_EQ(Parse("<function=f> words <parameter=text>a</parameter> </function> more").arguments,
            R"({"text":"a"})");
}

TEST(ToolCallParser, WhatIsNoCallComesBack) {
  for (const std::string body : {"", "\n", "{\"name\":\"f\"}", "<function>f", "<function=>",
                                 "<function=a\nb>", "<function=f", "  <func", "<function=a<b>"}) {
    const Parsed parsed = Parse(body);
    EXPECT_EQ(parsed.name, "") << body;
    EXPECT_EQ(parsed.arguments, "") << body;
    EXPECT_EQ(parsed.text, "<tool_call>" + body);
  }
  EXPECT_EQ(Parse("<function=" + std::string(200, 'n')).name, "");
}

// However the text is cut, and whatever stands in it, the pieces join to the same JSON object.
TEST(ToolCallParser, PiecesDoNotDependOnHowTheTextWasCut) {
  std::mt19937_64 random(TestSeed());
  const std::string parts[] = {"<function=f>",
                               "<function=g>",
                               "</function>",
                               "<parameter=text>",
                               "<parameter=count>",
                               "</parameter>",
                               "\n",
                               " ",
                               "12",
                               "<",
                               "</par",
                               "true",
                               "\"",
                               "\\",
                               "é",
                               "{}",
                               ">"};
  int num_calls = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string body = random() % 4 == 0 ? "" : "\n<function=f>\n";
    for (int i = static_cast<int>(random() % 20); i > 0; --i)
      absl::StrAppend(&body, parts[random() % std::size(parts)]);
    const Parsed whole = Parse(body);
    Parsed cut;
    ToolCallParser parser(&Types(), "<tool_call>");
    for (size_t begin = 0; begin < body.size();) {
      size_t end = std::min(body.size(), begin + 1 + random() % 6);
      while (end < body.size() && (static_cast<unsigned char>(body[end]) & 0xC0) == 0x80) ++end;
      Add(parser.Append(body.substr(begin, end - begin)), &cut);
      begin = end;
    }
    Add(parser.Finish(), &cut);
    EXPECT_EQ(cut.name, whole.name) << body;
    EXPECT_EQ(cut.arguments, whole.arguments) << body;
    EXPECT_EQ(cut.text, whole.text) << body;
    if (whole.name.empty()) {
      EXPECT_EQ(whole.text, "<tool_call>" + body);
    } else {
      ++num_calls;
      EXPECT_TRUE(ParseJsonObject(whole.arguments, "arguments").ok()) << whole.arguments;
    }
  }
  EXPECT_GT(num_calls, 1000);
}

// A text parameter does not wait for its end.
TEST(ToolCallParser, TextIsPassedOnAsItComes) {
  ToolCallParser parser(&Types(), "");
  EXPECT_EQ(parser.Append("<function=f><parameter=text>ab").arguments, R"({"text":"ab)");
  EXPECT_EQ(parser.Append("c\n").arguments, R"(c\n)");
  EXPECT_EQ(parser.Append("d</para").arguments, "d");
  EXPECT_EQ(parser.Append("meter>").arguments, "");
  EXPECT_EQ(parser.Append("</function>").arguments, "\"}");
}

}  // namespace
}  // namespace ultraspeed::router
