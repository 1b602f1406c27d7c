#include "bench/grammar_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "bench/held_out.h"
#include "bench/model_vocabulary.h"
#include "common/check.h"
#include "common/grammar/constraint.h"
#include "common/grammar/json_schema.h"
#include "common/grammar/tool_calls.h"
#include "common/status_macros.h"

namespace ultraspeed::bench {
namespace {

using grammar::Constraint;
using grammar::TokenMask;
using grammar::Vocabulary;

constexpr double kRoundUs = 6100;  // of the served shape (docs/PERFORMANCE.md)
constexpr int kDrafts = 7;         // and of the block that it verifies, behind the anchor
constexpr int kClockReadings = 10'000;

constexpr char kExampleSchema[] = R"({
  "type": "object",
  "properties": {
    "id": {"type": "integer", "minimum": 1, "maximum": 999999},
    "title": {"type": "string", "minLength": 1, "maxLength": 80},
    "summary": {"type": "string"},
    "kind": {"enum": ["question", "incident", "request", "praise"]},
    "urgency": {"enum": ["low", "normal", "high"]},
    "score": {"type": "number"},
    "is_open": {"type": "boolean"},
    "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 5},
    "customer": {
      "type": "object",
      "properties": {
        "name": {"type": "string"},
        "email": {"type": ["string", "null"]},
        "orders": {"type": "array", "items": {"type": "integer"}, "maxItems": 10}
      },
      "required": ["name", "email"],
      "additionalProperties": false
    },
    "steps": {
      "type": "array",
      "items": {
        "type": "object",
        "properties": {"action": {"type": "string"}, "minutes": {"type": "number"}},
        "required": ["action", "minutes"],
        "additionalProperties": false
      },
      "minItems": 1,
      "maxItems": 4
    }
  },
  "required": ["id", "title", "kind", "urgency", "score", "is_open", "tags", "customer", "steps"],
  "additionalProperties": false
})";

constexpr char kTableParameters[] = R"({
  "type": "object",
  "properties": {
    "restaurant": {"type": "string", "minLength": 1, "maxLength": 40},
    "guests": {"type": "integer", "minimum": 1, "maximum": 20},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"},
    "seating": {"enum": ["inside", "outside", "any"]},
    "notes": {"type": "string", "maxLength": 60}
  },
  "required": ["restaurant", "guests", "date", "time"],
  "additionalProperties": false
})";
constexpr char kMailParameters[] = R"({
  "type": "object",
  "properties": {
    "to": {"type": "array", "items": {"type": "string", "format": "email"}, "maxItems": 3},
    "subject": {"type": "string", "maxLength": 60},
    "is_urgent": {"type": "boolean"}
  },
  "required": ["to", "subject"],
  "additionalProperties": false
})";

// A request's strict tools.
std::vector<grammar::CallableTool> FewTools() {
  return {{"book_table", true, kTableParameters}, {"send_mail", true, kMailParameters}};
}
std::vector<grammar::CallableTool> ManyTools() {
  constexpr int kTools = 128;
  std::vector<grammar::CallableTool> tools;
  for (int i = 0; i < kTools; ++i)
    tools.push_back({absl::StrCat("book_table_", i), true, kTableParameters});
  return tools;
}

using MakeGrammar = std::function<absl::StatusOr<std::shared_ptr<const grammar::Grammar>>()>;

template <typename Work>
double TimedUs(Work&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
      .count();
}

double Mean(const std::vector<double>& values) {
  return values.empty() ? 0
                        : std::accumulate(values.begin(), values.end(), 0.0) /
                              static_cast<double>(values.size());
}
// The smallest value that is not exceeded by `share` of them.
double Quantile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const auto count = std::ceil(share * static_cast<double>(values.size()));
  return values[std::max<size_t>(1, static_cast<size_t>(count)) - 1];
}

// Draws tokens that a mask allows: in the first half of tokens_max mostly any, then such as close
// something.
class RandomTokens {
 public:
  RandomTokens(const Vocabulary& vocabulary, const GrammarBenchOptions& options)
      : tokens_max_(options.tokens_max), random_(options.seed) {
    for (int32_t token = 0; token < vocabulary.num_tokens(); ++token)
      if (vocabulary.is_end(token)) closing_.push_back(token);
    // The quote first: within a string, all others are text. After it, what a call's value ends
    // with.
    for (const char* bytes : {"\"", "}", "]", ",", "</", "<"}) {
      for (int32_t token = 0; token < vocabulary.num_tokens(); ++token)
        if (vocabulary.bytes(token) == bytes) closing_.push_back(token);
    }
  }

  // -1: nothing is allowed.
  int32_t Next(const TokenMask& mask, size_t num_tokens_before) {
    constexpr uint32_t kClosesOneOf = 8;
    if (random_() % kClosesOneOf == 0 || 2 * num_tokens_before >= size_t(tokens_max_)) {
      for (const int32_t token : closing_) {
        if (mask.Allows(token)) return token;
      }
    }
    allowed_.clear();
    const absl::Span<const uint32_t> words = mask.words();
    for (size_t word = 0; word < words.size(); ++word) {
      for (uint32_t bits = words[word]; bits != 0; bits &= bits - 1)
        allowed_.push_back(static_cast<int32_t>(32 * word) + __builtin_ctz(bits));
    }
    return allowed_.empty() ? -1 : allowed_[random_() % allowed_.size()];
  }

 private:
  const int tokens_max_;
  std::mt19937 random_;
  std::vector<int32_t> closing_;
  std::vector<int32_t> allowed_;
};

// Everything that is timed of one grammar, in microseconds.
class GrammarTimes {
 public:
  GrammarTimes(std::shared_ptr<const Vocabulary> vocabulary, RandomTokens* random, int tokens_max)
      : vocabulary_(std::move(vocabulary)),
        random_(*random),
        tokens_max_(static_cast<size_t>(tokens_max)) {}

  absl::Status AddText(const MakeGrammar& make_grammar) {
    std::unique_ptr<Constraint> constraint;
    absl::StatusOr<std::shared_ptr<const grammar::Grammar>> grammar;
    compile_.push_back(TimedUs([&] {
      grammar = make_grammar();
      if (grammar.ok()) constraint = std::make_unique<Constraint>(*grammar, vocabulary_);
    }));
    RETURN_IF_ERROR(grammar.status());
    const std::vector<int32_t> text = Walk(*constraint);
    Constraint of_blocks(*grammar, vocabulary_);
    FollowBlocks(of_blocks, text, new_block_);
    FollowBlocks(of_blocks, text, known_block_);
    texts_ += 1;
    ended_ += !text.empty() && vocabulary_->is_end(text.back()) ? 1 : 0;
    tokens_ += static_cast<int64_t>(text.size());
    return absl::OkStatus();
  }

  boost::json::object Report() const {
    const double new_block = Mean(new_block_), known_block = Mean(known_block_);
    return {
        {"compile_ms", Mean(compile_) / 1e3},
        {"texts", texts_},
        {"ended_texts", ended_},
        {"tokens", tokens_},
        {"new_states", new_mask_.size()},
        {"new_mask_us",
         {{"mean", Mean(new_mask_)},
          {"p95", Quantile(new_mask_, 0.95)},
          {"max", Quantile(new_mask_, 1)}}},
        {"known_mask_us_mean", Mean(known_mask_)},
        {"advance_us_mean", Mean(advance_)},
        {"block_of_7_drafts_us_mean", {{"first_time", new_block}, {"again", known_block}}},
        {"eight_masks_of_6.1_ms_round",
         {{"first_time", new_block / kRoundUs}, {"again", known_block / kRoundUs}}},
    };
  }

 private:
  // A text at random, token by token, and the same once more.
  std::vector<int32_t> Walk(Constraint& constraint) {
    std::vector<int32_t> text;
    // A mask that is known is given out again, so one that was not given out before was made now.
    absl::flat_hash_set<std::shared_ptr<const TokenMask>> given;
    std::shared_ptr<const TokenMask> mask;
    for (const bool is_first : {true, false}) {
      grammar::State state = constraint.Start();
      for (size_t i = 0; i < (is_first ? tokens_max_ : text.size()); ++i) {
        const double mask_us = TimedUs([&] { mask = constraint.AllowedTokens(state); });
        (given.insert(mask).second ? new_mask_ : known_mask_).push_back(mask_us);
        if (is_first) {
          const int32_t token = random_.Next(*mask, i);
          if (token < 0) break;
          text.push_back(token);
          if (vocabulary_->is_end(token)) break;
        }
        advance_.push_back(TimedUs([&] { state = constraint.Advance(state, text[i]); }));
      }
    }
    return text;
  }

  // As rounds would that accept all drafts; without the last block if the text ends within.
  static void FollowBlocks(Constraint& constraint, absl::Span<const int32_t> text,
                           std::vector<double>& times) {
    grammar::State state = constraint.Start();
    for (size_t i = 0; i + kDrafts < text.size(); i += kDrafts + 1) {
      times.push_back(TimedUs([&] {
        for (int draft = 0; draft < kDrafts; ++draft) {
          constraint.AllowedTokens(state);
          state = constraint.Advance(state, text[i + static_cast<size_t>(draft)]);
        }
        constraint.AllowedTokens(state);
      }));
      state = constraint.Advance(state, text[i + kDrafts]);
    }
  }

  const std::shared_ptr<const Vocabulary> vocabulary_;
  RandomTokens& random_;
  const size_t tokens_max_;
  int64_t texts_ = 0, ended_ = 0, tokens_ = 0;
  std::vector<double> compile_, new_mask_, known_mask_, advance_, new_block_, known_block_;
};

}  // namespace

absl::StatusOr<boost::json::object> MeasureGrammar(const GrammarBenchOptions& options) {
  std::string schema = kExampleSchema, schema_name = "example";
  if (!options.schema_file.empty()) {
    ASSIGN_OR_RETURN(schema, ReadFile(options.schema_file));
    schema_name = options.schema_file;
  }
  // Before the tokenizer, which takes longer.
  RETURN_IF_ERROR(grammar::FromJsonSchema(schema, schema_name).status());
  ASSIGN_OR_RETURN(const worker::ModelConfig config, worker::LoadModelConfig(options.model_folder));
  absl::StatusOr<std::shared_ptr<const Vocabulary>> vocabulary;
  const double build_us =
      TimedUs([&] { vocabulary = LoadVocabulary(options.model_folder, config); });
  RETURN_IF_ERROR(vocabulary.status());

  std::vector<double> clock_us;
  for (int i = 0; i < kClockReadings; ++i) clock_us.push_back(TimedUs([] {}));
  boost::json::object report = {
      {"schema_name", schema_name},
      {"vocabulary_tokens", (*vocabulary)->num_tokens()},
      {"vocabulary_build_ms", build_us / 1e3},
      {"clock_us_mean", Mean(clock_us)},
  };
  const std::pair<const char*, MakeGrammar> grammars[] = {
      {"schema", [&] { return grammar::FromJsonSchema(schema, schema_name); }},
      {"json_object", [] { return grammar::AnyJsonObject(); }},
      {"strict_tools", [] { return grammar::FromTools(FewTools(), "tools"); }},
      {"strict_tools_128", [] { return grammar::FromTools(ManyTools(), "tools"); }},
  };
  for (const auto& [name, make_grammar] : grammars) {
    RandomTokens random(**vocabulary, options);
    GrammarTimes times(*vocabulary, &random, options.tokens_max);
    for (int i = 0; i < options.texts; ++i) RETURN_IF_ERROR(times.AddText(make_grammar));
    report[name] = times.Report();
  }
  return report;
}

}  // namespace ultraspeed::bench
