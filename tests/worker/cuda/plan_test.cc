// What the CUDA executor decides before it touches a GPU: memory, shapes, passes. Runs everywhere.
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "tests/worker/scripted_constraint.h"
#include "worker/cuda/cuda_executor.h"
#include "worker/cuda/round_plan.h"
#include "worker/model/served_shape.h"

namespace ultraspeed::worker::cuda {
namespace {

constexpr double kGigabyte = 1e9;

CudaOptions Options(int64_t kv_tokens, int max_batch_tokens = 512) {
  return {.executor = {
              .max_sequences = 1, .max_batch_tokens = max_batch_tokens, .kv_tokens = kv_tokens}};
}

TEST(MemoryPlanTest, TheServedShapesRankHoldsItsShareOfTheCheckpoint) {
  const ModelConfig rank = *RankOf(MimoV25ProShape(), 8);
  ASSERT_TRUE(CheckShape(rank).ok()) << CheckShape(rank);
  const MemoryPlan plan = PlanMemory(rank, Options(4096));
  // 69 layers of 384 experts, 2.507 MB each, are 66.42 GB; qkv 1.46, o_proj 1.76, router 0.65,
  // embedding and head 0.47, drafter 1.0.
  EXPECT_NEAR(static_cast<double>(plan[MemoryKind::kWeights]) / kGigabyte, 71.9, 0.8);
  EXPECT_NEAR(static_cast<double>(plan[MemoryKind::kStaging]) / kGigabyte, 0.377, 0.01);
}

TEST(MemoryPlanTest, OnlyPagesAndTablesGrowWithTheContext) {
  const ModelConfig rank = *RankOf(MimoV25ProShape(), 8);
  const MemoryPlan small = PlanMemory(rank, Options(4096));
  const MemoryPlan large = PlanMemory(rank, Options(131072));
  // 10 full layers, one kv head of 192 + 128 bf16 values a token.
  EXPECT_EQ(large[MemoryKind::kKvPages], size_t{131072} * 10 * (192 + 128) * 2);
  EXPECT_EQ(large[MemoryKind::kKvPages], 32 * small[MemoryKind::kKvPages]);
  EXPECT_EQ(large[MemoryKind::kRings], small[MemoryKind::kRings]);
  EXPECT_EQ(large[MemoryKind::kDrafterRings], small[MemoryKind::kDrafterRings]);
  // The resident engine keeps a partial result of attention for every row, head and segment of 256
  // positions, but at least 128; the tables end a block of 8 later, in a segment of its own.
  EXPECT_EQ(large[MemoryKind::kActivations] - small[MemoryKind::kActivations],
            size_t{16} * 16 * (131072 / 256 + 1 - 128) * 528);
  EXPECT_LT(large[MemoryKind::kWorkspace], size_t{1} << 30);
  EXPECT_LT(large.total(), size_t{80} * 1000 * 1000 * 1000);
}

TEST(MemoryPlanTest, Fp8HalvesTheCaches) {
  const ModelConfig rank = *RankOf(MimoV25ProShape(), 8);
  CudaOptions options = Options(65536);
  const MemoryPlan bf16 = PlanMemory(rank, options);
  options.executor.kv_precision = KvPrecision::kFp8;
  const MemoryPlan fp8 = PlanMemory(rank, options);
  EXPECT_EQ(2 * fp8[MemoryKind::kKvPages], bf16[MemoryKind::kKvPages]);
  EXPECT_EQ(2 * fp8[MemoryKind::kRings], bf16[MemoryKind::kRings]);
  EXPECT_EQ(2 * fp8[MemoryKind::kDrafterRings], bf16[MemoryKind::kDrafterRings]);
}

// Weights that are divided, the router and norms whole; logits of the whole vocabulary on each.
TEST(MemoryPlanTest, ARankOfSeveralHoldsItsShare) {
  const ModelConfig config = MimoV25ProShape();
  CudaOptions options = Options(4096);
  options.executor.num_ranks = 8;
  const MemoryPlan rank = PlanMemory(config, options);
  const MemoryPlan alone = PlanMemory(*RankOf(config, 8), Options(4096));
  EXPECT_EQ(rank[MemoryKind::kWeights], alone[MemoryKind::kWeights]);
  EXPECT_EQ(rank[MemoryKind::kKvPages], alone[MemoryKind::kKvPages]);
  EXPECT_EQ(rank[MemoryKind::kRings], alone[MemoryKind::kRings]);
  const size_t more_logits = size_t{64} * static_cast<size_t>(config.vocabulary) * 4 * 7 / 8;
  EXPECT_GT(rank[MemoryKind::kActivations], alone[MemoryKind::kActivations] + more_logits);
  // The parts of a prefill's sum, where NCCL brings them: bf16, of every rank and its own.
  EXPECT_GE(rank[MemoryKind::kWorkspace], size_t{512} * 6144 * 2 * 9);
  EXPECT_LT(rank.total(), size_t{80} * 1000 * 1000 * 1000);
}

TEST(MemoryPlanTest, ShortageIsRefusedWithTheNumbers) {
  MemoryPlan plan;
  plan[MemoryKind::kWeights] = 70'000'000'000;
  plan[MemoryKind::kKvPages] = 90'000'000'000;
  EXPECT_TRUE(CheckFits(plan, 170'000'000'000).ok());
  const absl::Status status = CheckFits(plan, 141'000'000'000);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  for (const char* part :
       {"70.00 GB weights", "90.00 GB KV pages", "141.00 GB free", "lower --kv-tokens"}) {
    EXPECT_NE(status.message().find(part), absl::string_view::npos) << part << " in " << status;
  }
  plan[MemoryKind::kKvPages] = 1'000'000'000;
  EXPECT_NE(CheckFits(plan, 40'000'000'000).message().find("no flag"), absl::string_view::npos);
}

TEST(ShapeTest, NamesTheDimensionThatTheKernelsDoNotTake) {
  ModelConfig config = MimoV25ProShape();
  EXPECT_TRUE(CheckShape(config).ok());
  config.hidden = 6144 + 32;
  EXPECT_NE(CheckShape(config).message().find("hidden_size: is 6176"), absl::string_view::npos)
      << CheckShape(config);
  config = MimoV25ProShape();
  config.qk_head_dim = 64;
  EXPECT_NE(CheckShape(config).message().find("head_dim: is 64"), absl::string_view::npos);
  EXPECT_FALSE(RankOf(MimoV25ProShape(), 16).ok());  // 8 kv heads
  EXPECT_FALSE(RankOf(MimoV25ProShape(), 0).ok());
}

SequenceStep Step(int64_t computed, int num_tokens, bool sample, int block) {
  return {.computed = computed, .num_tokens = num_tokens, .sample = sample, .block = block};
}

TEST(PassPlanTest, PrefillInOnePassAndOnePassForEachBlock) {
  const Round round{.steps = {Step(0, 100, false, 1), Step(10, 1, true, 8), Step(5, 1, true, 1),
                              Step(0, 1, false, 1), Step(700, 30, true, 1), Step(20, 1, true, 8)}};
  const std::vector<PassPlan> passes = PlanPasses(round);
  ASSERT_EQ(passes.size(), 3u);
  EXPECT_EQ(passes[0].kind, PassKind::kPrefill);
  EXPECT_EQ(passes[0].steps, (std::vector<int>{0, 3, 4}));
  EXPECT_EQ(passes[0].num_rows, 131);
  EXPECT_EQ(passes[0].rows_max, 100);
  EXPECT_EQ(passes[0].num_samples, 1);
  EXPECT_EQ(passes[0].position_end, 730);
  EXPECT_EQ(passes[1].kind, PassKind::kDecode);
  EXPECT_EQ(passes[1].block, 8);
  EXPECT_EQ(passes[1].steps, (std::vector<int>{1, 5}));
  EXPECT_EQ(passes[1].num_rows, 16);
  EXPECT_EQ(passes[1].num_samples, 16);
  EXPECT_EQ(passes[1].position_end, 28);
  EXPECT_EQ(passes[2].block, 1);
  EXPECT_EQ(passes[2].steps, (std::vector<int>{2}));
}

// Masks come between their drafts and their target's pass. A prefill's are there beforehand.
TEST(PassPlanTest, StepsWithConstraintsDecodeInPassesOfTheirOwn) {
  const ScriptedConstraint constraint(10);
  Round round{.steps = {Step(0, 9, true, 1), Step(10, 1, true, 8), Step(5, 1, true, 1),
                        Step(20, 1, true, 8), Step(0, 7, false, 1), Step(30, 1, true, 8)}};
  for (const size_t i : {1, 4, 5}) round.steps[i].constraint = &constraint;
  std::vector<PassPlan> passes = PlanPasses(round);
  ASSERT_EQ(passes.size(), 4u);
  EXPECT_EQ(passes[0].kind, PassKind::kPrefill);
  EXPECT_FALSE(passes[0].constrained);  // who has one chooses nothing yet
  EXPECT_EQ(passes[1].steps, (std::vector<int>{1, 5}));
  EXPECT_TRUE(passes[1].constrained);
  EXPECT_EQ(passes[2].steps, (std::vector<int>{2}));
  EXPECT_FALSE(passes[2].constrained);
  EXPECT_EQ(passes[3].steps, (std::vector<int>{3}));
  EXPECT_EQ(passes[3].block, 8);
  EXPECT_FALSE(passes[3].constrained);
  round.steps[0].constraint = &constraint;
  passes = PlanPasses(round);
  EXPECT_EQ(passes[0].steps, (std::vector<int>{0, 4}));
  EXPECT_TRUE(passes[0].constrained);
}

Round Decodes(const std::vector<int>& blocks) {
  static const int32_t kAnchor = 0;
  Round round;
  for (const int block : blocks) {
    round.steps.push_back({.tokens = &kAnchor, .num_tokens = 1, .sample = true, .block = block});
  }
  return round;
}

std::vector<std::vector<int>> BlocksOf(const RoundParts& parts) {
  std::vector<std::vector<int>> blocks;
  for (const Round& part : parts.resident) {
    blocks.emplace_back();
    for (const SequenceStep& step : part.steps) blocks.back().push_back(step.block);
  }
  return blocks;
}
const auto kAll = [](const SequenceStep&) { return true; };

// Up to eight sequences.
// Drafts that come along are not the drafter's: a pass of their own, and as many rows as there are.
TEST(PassPlanTest, GivenDraftsHaveAPassOfTheirOwn) {
  Round round = Decodes({4, 4, 4, 1});
  const std::vector<int32_t> drafts(7);
  for (const size_t i : {1, 3}) {
    round.steps[i].drafts = drafts.data();
    round.steps[i].num_drafts = 3;
  }
  const std::vector<PassPlan> passes = PlanPasses(round);
  ASSERT_EQ(passes.size(), 2u);
  EXPECT_EQ(passes[0].steps, (std::vector<int>{0, 2}));
  EXPECT_FALSE(passes[0].given);
  EXPECT_EQ(passes[1].steps, (std::vector<int>{1, 3}));
  EXPECT_TRUE(passes[1].given);
  EXPECT_EQ(passes[1].block, 4);
  EXPECT_EQ(passes[1].num_rows, 8);
  EXPECT_EQ(NumRows(round), 16);
  round.steps[3].num_drafts = 4;
  EXPECT_EQ(PlanPasses(round).size(), 3u);
  EXPECT_EQ(NumRows(round), 17);
  EXPECT_EQ(PartsOf(round, [](const SequenceStep&) { return true; }).part_of,
            (std::vector<int>{0, 0, 0, 1}));
}

TEST(RoundPartsTest, SequencesShareTheSixteenRowsOfARound) {
  using Blocks = std::vector<std::vector<int>>;
  EXPECT_EQ(BlocksOf(PartsOf(Decodes({8}), kAll)), (Blocks{{8}}));
  EXPECT_EQ(BlocksOf(PartsOf(Decodes({4, 4}), kAll)), (Blocks{{4, 4}}));
  EXPECT_EQ(BlocksOf(PartsOf(Decodes({1, 1, 1, 1, 1, 1, 1, 1}), kAll)),
            (Blocks{{1, 1, 1, 1, 1, 1, 1, 1}}));
  EXPECT_EQ(BlocksOf(PartsOf(Decodes({1, 1, 1, 1, 1, 1, 1, 1, 1}), kAll)),
            (Blocks{{1, 1, 1, 1, 1, 1, 1, 1}, {1}}));
  EXPECT_EQ(BlocksOf(PartsOf(Decodes({8, 2, 4, 2, 1}), kAll)), (Blocks{{8, 2, 4, 2}, {1}}));
  EXPECT_EQ(BlocksOf(PartsOf(Decodes({8, 8, 4, 4}), kAll)), (Blocks{{8, 8}, {4, 4}}));
  EXPECT_EQ(BlocksOf(PartsOf(Decodes({8, 5, 4, 3}), kAll)), (Blocks{{8, 5, 3}, {4}}));
}

// Top-k and top-p take other phases.
TEST(RoundPartsTest, SequencesThatShareARoundChooseAlike) {
  Round round = Decodes({2, 2, 2, 1});
  round.steps[1].sampling = {.temperature = 1.0f, .top_p = 0.9f};
  round.steps[2].sampling = {.temperature = 1.0f, .seed = 4};
  round.steps[3].sampling = {.temperature = 0.5f, .top_k = 3};
  const RoundParts parts = PartsOf(round, kAll);
  EXPECT_EQ(parts.part_of, (std::vector<int>{0, 1, 0, 1}));
  round.steps[1].sampling.temperature = 0;  // greedy, whatever else it says
  EXPECT_EQ(PartsOf(round, kAll).part_of, (std::vector<int>{0, 0, 0, 1}));
}

// What is left for a pass anyway rides in it cheaply; many rounds are slower than one pass.
TEST(RoundPartsTest, TheResidentEngineRunsWhatItRunsFaster) {
  const auto pays = [](const std::vector<int>& blocks, auto takes) {
    return ResidentPays(PartsOf(Decodes(blocks), takes));
  };
  EXPECT_TRUE(pays({1}, kAll));
  EXPECT_TRUE(pays({8}, kAll));
  EXPECT_TRUE(pays({1, 1, 1, 1, 1, 1, 1, 1}, kAll));
  EXPECT_TRUE(pays({2, 2, 2, 2}, kAll));
  EXPECT_TRUE(pays({8, 8}, kAll));
  EXPECT_TRUE(pays({4, 4, 4, 4}, kAll));
  EXPECT_FALSE(pays({8, 8, 8}, kAll));
  EXPECT_TRUE(pays(std::vector<int>(16, 1), kAll));
  EXPECT_FALSE(pays(std::vector<int>(24, 1), kAll));
  EXPECT_FALSE(pays({8}, [](const SequenceStep&) { return false; }));
  const auto plain = [](const SequenceStep& step) { return step.block == 1; };
  EXPECT_TRUE(pays({1, 8}, plain));
  bool first = true;
  EXPECT_FALSE(pays({8, 8}, [&](const SequenceStep&) { return std::exchange(first, false); }));
}

TEST(RoundPartsTest, ResultsComeBackInTheRoundsOrder) {
  const std::vector<int> blocks = {8, 7, 4, 2, 5, 3, 1};
  const RoundParts parts =
      PartsOf(Decodes(blocks), [](const SequenceStep& step) { return step.block % 4 != 0; });
  EXPECT_EQ(parts.part_of,
            (std::vector<int>{RoundParts::kInPasses, 0, RoundParts::kInPasses, 0, 0, 1, 0}));
  const auto drafted = [](const Round& round) {
    RoundResult result;
    for (const SequenceStep& step : round.steps)
      result.sequences.push_back({.chosen = {}, .num_drafted = step.block, .num_accepted = 0});
    return result;
  };
  std::vector<RoundResult> of_resident;
  for (const Round& part : parts.resident) of_resident.push_back(drafted(part));
  const RoundResult joined = parts.Join(std::move(of_resident), drafted(parts.passes));
  ASSERT_EQ(joined.sequences.size(), blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i) EXPECT_EQ(joined.sequences[i].num_drafted, blocks[i]);
}

TEST(PassPlanTest, PositionsAreBoundedByAFewPowersOfTwo) {
  EXPECT_EQ(PositionBound(1, 100'000), 1024);
  EXPECT_EQ(PositionBound(1024, 100'000), 1024);
  EXPECT_EQ(PositionBound(1025, 100'000), 2048);
  EXPECT_EQ(PositionBound(70'000, 100'000), 100'000);
  EXPECT_EQ(PositionBound(10, 528), 528);
}

TEST(RingTest, RoomForTheWindowAPassAndRejectedBlocks) {
  const auto ring_pages = [](int window, int max_rows) {
    return PlanRings(window, {.max_rows = max_rows}).ring_pages;
  };
  EXPECT_EQ(ring_pages(128, 512), (128 + 512 + 3 * kDraftBlockMax + 63) / 64);
  EXPECT_EQ(ring_pages(1024, 16), (1024 + kPageTokens + 3 * kDraftBlockMax + 63) / 64);
}

}  // namespace
}  // namespace ultraspeed::worker::cuda
