#include "router/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <chrono>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/limits.h"
#include "router/unicode.h"
#include "tests/router/test_tokenizer.h"

namespace ultraspeed::router {
namespace {

using ::testing::HasSubstr;

std::vector<int32_t> Ids(const Tokenizer& tokenizer, absl::string_view text,
                         SpecialTokens special) {
  auto ids = tokenizer.Encode(text, special);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *ids : std::vector<int32_t>{};
}

std::string Decode(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  std::string text;
  for (const int32_t id : ids) absl::StrAppend(&text, tokenizer.TokenBytes(id));
  return text;
}

std::vector<int32_t> IdList(const boost::json::value& value) {
  return boost::json::value_to<std::vector<int32_t>>(value);
}

std::string FixtureJson() { return ReadTestFile(std::string(kFixtures) + "tokenizer.json"); }

TEST(TokenizerTest, AgreesWithTheReferenceLibrary) {
  int num_cases = 0;
  const std::string cases = ReadTestFile(std::string(kFixtures) + "tokenizer_cases.jsonl");
  for (const absl::string_view line : absl::StrSplit(cases, '\n', absl::SkipEmpty())) {
    const boost::json::value value = boost::json::parse({line.data(), line.size()});
    const std::string text = boost::json::value_to<std::string>(value.at("text"));
    EXPECT_EQ(Ids(TestTokenizer(), text, SpecialTokens::kAsText), IdList(value.at("as_text")))
        << line;
    EXPECT_EQ(Ids(TestTokenizer(), text, SpecialTokens::kParse), IdList(value.at("parsed")))
        << line;
    EXPECT_EQ(ToNfc(text), boost::json::value_to<std::string>(value.at("nfc"))) << line;
    ++num_cases;
  }
  EXPECT_GE(num_cases, 200);
}

TEST(TokenizerTest, DecodingAnEncodingGivesTheNfc) {
  std::mt19937_64 random(TestSeed());
  for (int i = 0; i < 2000; ++i) {
    const std::string text = RandomText(random, 80);
    EXPECT_EQ(Decode(TestTokenizer(), Ids(TestTokenizer(), text, SpecialTokens::kAsText)),
              ToNfc(text))
        << "seed " << TestSeed() << " case " << i;
  }
}

TEST(TokenizerTest, WhatAUserWritesNeverBecomesASpecialToken) {
  const auto is_added = [](int32_t id) {
    return TestTokenizer().TokenId(TestTokenizer().TokenBytes(id)).ok();
  };
  std::mt19937_64 random(TestSeed());
  const std::string_view parts[] = {
      "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<", "|", ">", "im_", " ", "\n"};
  for (int i = 0; i < 1000; ++i) {
    std::string text;
    for (int n = 0; n < 12; ++n) text += parts[random() % std::size(parts)];
    for (const int32_t id : Ids(TestTokenizer(), text, SpecialTokens::kAsText)) {
      EXPECT_FALSE(is_added(id)) << id << " in " << text;
    }
  }
}

TEST(TokenizerTest, ParsesSpecialTokensOnlyWhenAsked) {
  const int32_t end = *TestTokenizer().TokenId("<|im_end|>");
  EXPECT_EQ(Ids(TestTokenizer(), "<|im_end|>", SpecialTokens::kParse), std::vector<int32_t>{end});
  EXPECT_GT(Ids(TestTokenizer(), "<|im_end|>", SpecialTokens::kAsText).size(), 1u);
  EXPECT_TRUE(TestTokenizer().IsSpecial(end));
  EXPECT_FALSE(TestTokenizer().IsSpecial(*TestTokenizer().TokenId("<think>")));
  EXPECT_FALSE(TestTokenizer().IsSpecial(-1));
  EXPECT_FALSE(TestTokenizer().IsSpecial(1 << 30));
}

TEST(TokenizerTest, RefusesWhatIsNotUtf8WithItsOffset) {
  const absl::Status status = TestTokenizer().Encode("abc\xFF", SpecialTokens::kAsText).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("byte 3"));
}

TEST(TokenizerTest, RefusesTooManyBytesNamingBoth) {
  const std::string text(limits::kPromptBytesMax + 1, 'a');
  const absl::Status status = TestTokenizer().Encode(text, SpecialTokens::kAsText).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat(text.size())));
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat(limits::kPromptBytesMax)));
}

TEST(TokenizerTest, UnknownIdsAndMarkersAreHarmless) {
  EXPECT_EQ(TestTokenizer().TokenBytes(-1), "");
  EXPECT_EQ(TestTokenizer().TokenBytes(TestTokenizer().vocabulary_size()), "");
  EXPECT_EQ(TestTokenizer().TokenId("<|nothing|>").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(TestTokenizer().TokenId("a").status().code(), absl::StatusCode::kNotFound);
}

TEST(TokenizerTest, LongRunsAreNotQuadratic) {
  std::string mixed;
  while (mixed.size() < (1u << 20)) mixed += "aab ";
  std::string marks = "e";
  while (marks.size() < (1u << 20)) marks += "\xCC\x81\xCC\xA3";
  std::string angles;
  while (angles.size() < (1u << 20)) angles += "<|im_";
  for (const std::string& text :
       {std::string(1 << 20, 'a'), std::string(1 << 20, ' '), std::string(1 << 20, '\n'),
        std::string(1 << 20, '-'), std::string(1 << 20, '<'), std::string(1 << 20, ' ') + "x",
        mixed, marks, angles}) {
    const auto start = std::chrono::steady_clock::now();
    const std::vector<int32_t> ids = Ids(TestTokenizer(), text, SpecialTokens::kParse);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    EXPECT_EQ(Decode(TestTokenizer(), ids), ToNfc(text));
    // Quadratic work would take minutes; the bound leaves room for sanitizers and busy machines.
    EXPECT_LT(seconds.count(), 20) << text.substr(0, 8);
    RecordProperty(absl::StrCat("ms_", static_cast<int>(text[0]), "_", text.size()),
                   static_cast<int>(seconds.count() * 1000));
  }
}

TEST(TokenizerTest, ManyThreadsGetTheSameIds) {
  std::mt19937_64 random(TestSeed());
  std::vector<std::string> texts;
  std::vector<std::vector<int32_t>> expected;
  for (int i = 0; i < 100; ++i) {
    texts.push_back(RandomText(random, 60));
    expected.push_back(Ids(TestTokenizer(), texts.back(), SpecialTokens::kAsText));
  }
  auto fresh = Tokenizer::Create(FixtureJson());
  ASSERT_TRUE(fresh.ok());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (size_t i = 0; i < texts.size(); ++i) {
        EXPECT_EQ(Ids(**fresh, texts[i], SpecialTokens::kAsText), expected[i]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

struct Refusal {
  const char* name;
  const char* from;
  const char* to;
  const char* message;
};

class TokenizerRefusalTest : public ::testing::TestWithParam<Refusal> {};

TEST_P(TokenizerRefusalTest, NamesWhatIsNotSupported) {
  const std::string good = FixtureJson();
  const std::string bad = absl::StrReplaceAll(good, {{GetParam().from, GetParam().to}});
  ASSERT_NE(good, bad) << "the fixture has no " << GetParam().from;
  const absl::Status status = Tokenizer::Create(bad).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, TokenizerRefusalTest,
    ::testing::Values(
        Refusal{"Model", R"("type":"BPE")", R"("type":"Unigram")", "Unigram"},
        Refusal{"Normalizer", R"("type":"NFC")", R"("type":"NFKC")", "NFKC"},
        Refusal{"NoNormalizer", R"("normalizer":{"type":"NFC"})", R"("normalizer":null)",
                "normalizer"},
        Refusal{"PreTokenizer", R"("type":"Sequence")", R"("type":"Whitespace")", "Whitespace"},
        Refusal{"Pattern", R"(\\p{N}|)", R"(\\p{N}{1,3}|)", "split pattern"},
        Refusal{"Behavior", R"("behavior":"Isolated")", R"("behavior":"Removed")", "behavior"},
        Refusal{"Invert", R"("invert":false)", R"("invert":true)", "invert"},
        Refusal{"PostProcessor", R"("post_processor":null)",
                R"("post_processor":{"type":"TemplateProcessing"})", "TemplateProcessing"},
        Refusal{"Truncation", R"("truncation":null)", R"("truncation":{"max_length":5})",
                "truncation"},
        Refusal{"Dropout", R"("dropout":null)", R"("dropout":0.1)", "dropout"},
        Refusal{"ByteFallback", R"("byte_fallback":false)", R"("byte_fallback":true)",
                "byte_fallback"},
        Refusal{"Suffix", R"("end_of_word_suffix":null)", R"("end_of_word_suffix":"</w>")",
                "end_of_word_suffix"},
        Refusal{"LeftStrip", R"("lstrip":false)", R"("lstrip":true)", "lstrip"},
        Refusal{"Normalized", R"("normalized":false)", R"("normalized":true)", "normalized"},
        Refusal{"AddedIsAByte", R"("content":"<think>")", R"("content":"a")", "another id"},
        Refusal{"AddedTwice", R"("content":"</think>")", R"("content":"<think>")", "repeats"},
        Refusal{"SameId", R"("id":600,)", R"("id":601,)", "two tokens"},
        Refusal{"NegativeId", R"("id":600,)", R"("id":-1,)", "id that is not in"},
        Refusal{"HugeId", R"("id":600,)", R"("id":999999999,)", "id that is not in"},
        Refusal{"MissingByte", R"("!":0,)", R"()", "single byte 33"},
        Refusal{"Alphabet", R"("!":0,)", R"("! ":0,)", "alphabet"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(TokenizerRobustnessTest, NotJson) {
  for (const char* text :
       {"", "{", "[]", "1", "{}", "null", "\xFF", "{\"model\":{}}", "{\"model\":[]}"}) {
    EXPECT_EQ(Tokenizer::Create(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(TokenizerRobustnessTest, DamagedFilesNeverCrash) {
  std::mt19937_64 random(TestSeed());
  const std::string good = FixtureJson();
  for (int i = 0; i < 400; ++i) {
    std::string bad = good;
    for (int n = static_cast<int>(random() % 4) + 1; n > 0; --n) {
      const size_t at = random() % bad.size();
      switch (random() % 3) {
        case 0:
          bad[at] = static_cast<char>(random());
          break;
        case 1:
          bad.erase(at, random() % 40);
          break;
        default:
          bad.insert(at, bad.substr(random() % bad.size(), random() % 40));
      }
    }
    const auto tokenizer = Tokenizer::Create(bad);
    if (!tokenizer.ok()) continue;
    EXPECT_TRUE((*tokenizer)->Encode("Hello <think> w\xC3\xB6rld", SpecialTokens::kParse).ok());
  }
}

TEST(TokenizerRobustnessTest, RandomBytesAreEncodedOrRefused) {
  std::mt19937_64 random(TestSeed());
  for (int i = 0; i < 5000; ++i) {
    std::string bytes(random() % 40, '\0');
    for (char& c : bytes) c = static_cast<char>(random() % 3 ? random() % 128 : random());
    const auto ids = TestTokenizer().Encode(bytes, SpecialTokens::kParse);
    EXPECT_EQ(ids.ok(), FirstInvalidByte(bytes) == bytes.size());
  }
}

}  // namespace
}  // namespace ultraspeed::router
