#include "bench/grammar_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace ultraspeed::bench {
namespace {

namespace json = boost::json;
using testing::StartsWith;

constexpr char kModel[] = "models/tiny-mimo";

// A schema in a file that goes with the test.
class SchemaFile {
 public:
  explicit SchemaFile(const std::string& text)
      : path_(absl::StrCat(testing::TempDir(), "grammar_bench_", getpid(), ".json")) {
    std::ofstream(path_) << text;
  }
  ~SchemaFile() { std::remove(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

double Number(const json::object& object, const char* key) {
  return object.at(key).to_number<double>();
}

TEST(GrammarBench, ReportsAllGrammarsAndTheVocabulary) {
  const absl::StatusOr<json::object> report = MeasureGrammar({.model_folder = kModel, .texts = 5});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->at("schema_name"), "example");
  EXPECT_GT(Number(*report, "vocabulary_tokens"), 4000);
  EXPECT_GT(Number(*report, "vocabulary_build_ms"), 0);
  for (const char* name : {"schema", "json_object", "strict_tools", "strict_tools_128"}) {
    const json::object& part = report->at(name).as_object();
    EXPECT_EQ(part.at("texts"), 5) << name;
    EXPECT_EQ(part.at("ended_texts"), 5) << name;
    const double tokens = Number(part, "tokens"), new_states = Number(part, "new_states");
    EXPECT_GT(tokens, 5 * 2) << name;
    EXPECT_LE(tokens, 5 * 256) << name;
    EXPECT_GE(new_states, 5) << name;
    EXPECT_LE(new_states, tokens) << name;
    EXPECT_GT(Number(part, "compile_ms"), 0) << name;
    const json::object& new_mask = part.at("new_mask_us").as_object();
    EXPECT_GT(Number(new_mask, "p95"), 0) << name;
    EXPECT_LE(Number(new_mask, "mean"), Number(new_mask, "max")) << name;
    EXPECT_LE(Number(new_mask, "p95"), Number(new_mask, "max")) << name;
    EXPECT_GT(Number(part, "known_mask_us_mean"), 0) << name;
    EXPECT_GT(Number(part, "advance_us_mean"), 0) << name;
    const json::object& block = part.at("block_of_7_drafts_us_mean").as_object();
    const json::object& share = part.at("eight_masks_of_6.1_ms_round").as_object();
    for (const char* when : {"first_time", "again"}) {
      EXPECT_GT(Number(block, when), 0) << name << " " << when;
      EXPECT_DOUBLE_EQ(Number(share, when), Number(block, when) / 6100) << name << " " << when;
    }
  }
  EXPECT_GT(Number(report->at("schema").as_object(), "tokens"), 5 * 40);  // nine members at least
}

TEST(GrammarBench, TextsFollowFromTheSeed) {
  const SchemaFile schema(R"({"type": "array", "items": {"type": "integer"}, "maxItems": 9})");
  const auto num_tokens = [&](uint64_t seed) {
    const auto report = MeasureGrammar(
        {.model_folder = kModel, .schema_file = schema.path(), .texts = 3, .seed = seed});
    return report.ok() ? Number(report->at("schema").as_object(), "tokens") : -1;
  };
  EXPECT_GT(num_tokens(1), 0);
  EXPECT_EQ(num_tokens(1), num_tokens(1));
}

TEST(GrammarBench, ErrorsOfASchemaNameFileAndPlace) {
  const SchemaFile schema(R"({"properties": {"age": {"not": {}}}})");
  const absl::Status status =
      MeasureGrammar({.model_folder = kModel, .schema_file = schema.path()}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              StartsWith(absl::StrCat(schema.path(), ".properties.age: \"not\"")));
  EXPECT_EQ(
      MeasureGrammar({.model_folder = kModel, .schema_file = "/nowhere.json"}).status().code(),
      absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace ultraspeed::bench
