#include "common/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

namespace ultraspeed {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class FlagTableTest : public testing::Test {
 protected:
  FlagTableTest() : flags_("prog", "does things") {
    flags_.String("listen", &listen_, "host:port", "Where to serve");
    flags_.StringList("workers", &workers_, "host:port", "Who works");
    flags_.Choice("device", &device_, {"auto", "cpu"}, "What to use");
    flags_.Bool("insecure", &insecure_, "In the clear");
    flags_.Int("max-sequences", &max_sequences_, {1, 256}, "sequences", "How many");
    flags_.Int64("kv-tokens", &kv_tokens_, {1, int64_t{1} << 40}, "tokens", "Capacity");
    flags_.Double("ratio", &ratio_, {0, 1}, "ratio", "How much");
    flags_.Duration("drain-timeout", &drain_timeout_, "How long");
  }

  absl::StatusOr<ParseOutcome> Parse(std::vector<const char*> words) {
    words.insert(words.begin(), "prog");
    return flags_.Parse(static_cast<int>(words.size()), words.data());
  }
  std::string Error(std::vector<const char*> words) {
    const auto outcome = Parse(std::move(words));
    EXPECT_EQ(outcome.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(outcome.status().message());
  }
  std::string YamlError(const std::string& text) {
    return std::string(flags_.ParseYaml(text, "c.yaml").message());
  }

  std::string listen_ = "127.0.0.1:1";
  std::vector<std::string> workers_;
  std::string device_ = "auto";
  bool insecure_ = false;
  int max_sequences_ = 8;
  int64_t kv_tokens_ = 1024;
  double ratio_ = 0.5;
  absl::Duration drain_timeout_ = absl::Seconds(60);
  FlagTable flags_;
};

TEST_F(FlagTableTest, ReadsEveryKind) {
  ASSERT_TRUE(Parse({"--listen=a:1", "--workers", "b:2,c:3", "--device=cpu", "--insecure",
                     "--max-sequences", "16", "--kv-tokens=5000000000", "--ratio=0.25",
                     "--drain-timeout=1m30s"})
                  .ok());
  EXPECT_EQ(listen_, "a:1");
  EXPECT_THAT(workers_, ElementsAre("b:2", "c:3"));
  EXPECT_EQ(device_, "cpu");
  EXPECT_TRUE(insecure_);
  EXPECT_EQ(max_sequences_, 16);
  EXPECT_EQ(kv_tokens_, 5000000000);
  EXPECT_EQ(ratio_, 0.25);
  EXPECT_EQ(drain_timeout_, absl::Seconds(90));
}

TEST_F(FlagTableTest, NoPrefixClearsABool) {
  insecure_ = true;
  ASSERT_TRUE(Parse({"--no-insecure"}).ok());
  EXPECT_FALSE(insecure_);
}

TEST_F(FlagTableTest, BadValuesNameFlagValueAndBound) {
  EXPECT_THAT(Error({"--max-sequences=0"}),
              HasSubstr("--max-sequences=0: must be a whole number in 1..256"));
  EXPECT_THAT(Error({"--max-sequences=257"}), HasSubstr("1..256"));
  EXPECT_THAT(Error({"--max-sequences=many"}), HasSubstr("--max-sequences=many"));
  EXPECT_THAT(Error({"--kv-tokens=1e9"}), HasSubstr("--kv-tokens=1e9"));
  EXPECT_THAT(Error({"--ratio=1.5"}), HasSubstr("0..1"));
  EXPECT_THAT(Error({"--ratio=nan"}), HasSubstr("--ratio=nan"));
  EXPECT_THAT(Error({"--device=cuda"}), HasSubstr("one of auto, cpu"));
  EXPECT_THAT(Error({"--insecure=maybe"}), HasSubstr("true or false"));
  EXPECT_THAT(Error({"--drain-timeout=-1s"}), HasSubstr("--drain-timeout=-1s"));
  EXPECT_THAT(Error({"--drain-timeout=60"}), HasSubstr("such as"));
}

TEST_F(FlagTableTest, UnknownAndIncompleteFlagsAreErrors) {
  EXPECT_THAT(Error({"--max-seqs=4"}), HasSubstr("unknown flag --max-seqs"));
  EXPECT_THAT(Error({"--no-listen"}), HasSubstr("unknown flag --no-listen"));
  EXPECT_THAT(Error({"--listen"}), HasSubstr("value missing"));
  EXPECT_THAT(Error({"stray"}), HasSubstr("unexpected argument stray"));
}

TEST_F(FlagTableTest, HelpListsEveryFlagWithDefaultUnitAndBounds) {
  const auto outcome = Parse({"--help"});
  ASSERT_TRUE(outcome.ok());
  EXPECT_EQ(*outcome, ParseOutcome::kHelp);
  const std::string help = flags_.Help();
  for (const char* name : {"--config", "--listen", "--workers", "--device", "insecure",
                           "--max-sequences", "--kv-tokens", "--ratio", "--drain-timeout"}) {
    EXPECT_THAT(help, HasSubstr(name));
  }
  EXPECT_THAT(help, HasSubstr("--max-sequences=<sequences>\n      How many (default 8; 1..256)"));
  EXPECT_THAT(help, HasSubstr("How long (default 1m)"));
}

TEST_F(FlagTableTest, YamlHasTheSameNames) {
  ASSERT_TRUE(flags_
                  .ParseYaml("listen: a:1\nworkers: [b:2, 'c:3']\nmax-sequences: 4\ninsecure: "
                             "true\ndrain-timeout: 5s\n",
                             "c.yaml")
                  .ok());
  EXPECT_EQ(listen_, "a:1");
  EXPECT_THAT(workers_, ElementsAre("b:2", "c:3"));
  EXPECT_EQ(max_sequences_, 4);
  EXPECT_TRUE(insecure_);
  EXPECT_EQ(drain_timeout_, absl::Seconds(5));
  EXPECT_TRUE(flags_.ParseYaml("", "c.yaml").ok());
}

TEST_F(FlagTableTest, YamlErrorsNameLineAndKey) {
  EXPECT_THAT(YamlError("listen: a\nmax_sequences: 4\n"),
              HasSubstr("c.yaml:2: unknown key max_sequences"));
  EXPECT_THAT(YamlError("listen: a\nlisten: b\n"), HasSubstr("doubled key listen"));
  EXPECT_THAT(YamlError("max-sequences: 999\n"), HasSubstr("c.yaml:1: max-sequences=999"));
  EXPECT_THAT(YamlError("listen: [a, b]\n"), HasSubstr("listen"));
  EXPECT_THAT(YamlError("- a\n"), HasSubstr("map"));
  EXPECT_THAT(YamlError("a: [\n"), HasSubstr("c.yaml"));
  EXPECT_THAT(YamlError("config: other.yaml\n"), HasSubstr("unknown key config"));
}

TEST_F(FlagTableTest, FlagsWinOverTheFile) {
  const std::string path = testing::TempDir() + "/config_test.yaml";
  std::ofstream(path) << "max-sequences: 4\nlisten: file:1\n";
  ASSERT_TRUE(Parse({"--max-sequences=32", "--config", path.c_str()}).ok());
  EXPECT_EQ(max_sequences_, 32);
  EXPECT_EQ(listen_, "file:1");
  std::remove(path.c_str());
  EXPECT_EQ(Parse({"--config", path.c_str()}).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(FlagTableTest, PositionalWords) {
  std::vector<std::string> words;
  flags_.Positional("command", &words, "What to do");
  ASSERT_TRUE(Parse({"chat", "--max-sequences=2", "--", "--verbatim"}).ok());
  EXPECT_THAT(words, ElementsAre("chat", "--verbatim"));
}

TEST(ReadFileTest, BoundsTheSize) {
  const std::string path = testing::TempDir() + "/read_file_test";
  std::ofstream(path) << "12345";
  EXPECT_EQ(*ReadFile(path, 5, "thing"), "12345");
  const auto result = ReadFile(path, 4, "thing");
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("larger than 4 bytes"));
  std::remove(path.c_str());
}

}  // namespace
}  // namespace ultraspeed
