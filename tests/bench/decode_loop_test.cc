#include "bench/decode_loop.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "bench/held_out.h"
#include "bench/model_vocabulary.h"
#include "common/grammar/json_schema.h"

namespace ultraspeed::bench {
namespace {

const char kDecodedModel[] = "models/tiny-mimo";

absl::StatusOr<std::unique_ptr<worker::Executor>> LoadModel() {
  worker::ExecutorOptions options;
  options.model_folder = kDecodedModel;
  options.max_sequences = 2;
  options.kv_tokens = 4096;
  return worker::CreateCpuExecutor(options);
}

TEST(DecodeLoop, HoldsCompletionsToAFormatWhateverIsDrafted) {
  const auto executor = LoadModel();
  ASSERT_TRUE(executor.ok()) << executor.status();
  const auto vocabulary = LoadVocabulary(kDecodedModel, (*executor)->config());
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  const auto held_out = LoadHeldOutPrompts(kDecodedModel, (*executor)->config());
  ASSERT_TRUE(held_out.ok()) << held_out.status();
  ASSERT_GE(held_out->size(), 3u);
  std::vector<std::vector<int32_t>> prompts;
  for (size_t i = 0; i < 3; ++i) prompts.push_back((*held_out)[i].tokens);

  DecodeOptions options = {.max_tokens = 24};
  const DecodeOutcome without = Decode(**executor, prompts, options);
  const auto constraint =
      std::make_shared<grammar::Constraint>(grammar::AnyJsonObject(), *vocabulary);
  options.output.constraint = constraint;
  const DecodeOutcome plain = Decode(**executor, prompts, options);
  options.block = (*executor)->config().drafter.block_size;
  const DecodeOutcome speculative = Decode(**executor, prompts, options);
  options.sequences = 2;
  EXPECT_EQ(Decode(**executor, prompts, options).texts, plain.texts);

  EXPECT_EQ(speculative.texts, plain.texts);
  EXPECT_LT(speculative.rounds, plain.rounds);
  EXPECT_EQ(plain.prompt_tokens,
            static_cast<int64_t>(prompts[0].size() + prompts[1].size() + prompts[2].size()));
  EXPECT_NE(plain.texts, without.texts);
  for (const std::vector<int32_t>& text : plain.texts) {
    EXPECT_GE(text.size(), 2u);
    grammar::State state = constraint->Start();
    for (const int32_t token : text) state = constraint->Advance(state, token);
    EXPECT_FALSE(state.is_dead());
  }
}

// Looking drafts up changes no text, alone and in company, and is done where a prompt begins again.
TEST(DecodeLoop, LooksUpDraftsWhereTextsRepeatThemselves) {
  const auto executor = LoadModel();
  ASSERT_TRUE(executor.ok()) << executor.status();
  const auto text = ReadFile(std::string(kDecodedModel) + "/heldout/text.txt");
  ASSERT_TRUE(text.ok()) << text.status();
  const auto tokens = TokenizeText(kDecodedModel, text->substr(0, 8000));
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  std::vector<std::vector<int32_t>> prompts = Stretches(*tokens, 300, 100);
  ASSERT_EQ(prompts.size(), 32u);
  ASSERT_EQ(prompts[5].size(), 400u);
  EXPECT_TRUE(std::equal(prompts[5].begin(), prompts[5].begin() + 100, prompts[5].begin() + 300));
  EXPECT_TRUE(Stretches(*tokens, tokens->size(), 0).empty());
  prompts.resize(4);

  DecodeOptions options = {.max_tokens = 48};
  const DecodeOutcome plain = Decode(**executor, prompts, options);
  options.block = (*executor)->config().drafter.block_size;
  options.draft_costs = worker::DraftCost{.fixed = 0.5, .row = 0.1};
  EXPECT_EQ(Decode(**executor, prompts, options).looked_up_rounds, 0);
  options.looks_up = true;
  for (const bool chooses_blocks : {false, true}) {
    for (const int sequences : {1, 2}) {
      options.chooses_blocks = chooses_blocks;
      options.sequences = sequences;
      const DecodeOutcome looked_up = Decode(**executor, prompts, options);
      EXPECT_EQ(looked_up.texts, plain.texts);
      EXPECT_GT(looked_up.looked_up_rounds, 0);
      EXPECT_GT(looked_up.looked_up_tokens, looked_up.looked_up_rounds);
      EXPECT_LE(looked_up.looked_up_tokens, looked_up.tokens);
    }
  }
}

}  // namespace
}  // namespace ultraspeed::bench
