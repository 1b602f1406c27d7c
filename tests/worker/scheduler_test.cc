#include "worker/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/worker/scripted_executor.h"

namespace ultraspeed::worker {
namespace {

// Running sequences with their leases, and what an executor would have answered.
class SchedulerTest : public testing::Test {
 protected:
  Sequence& AddRunning(const std::string& id, int num_prompt_tokens, Tier tier,
                       int64_t max_tokens = 100) {
    running_.push_back(std::make_unique<Sequence>(MakeSpec(id, num_prompt_tokens, max_tokens, tier),
                                                  nullptr, absl::ZeroDuration()));
    running_.back()->lease = kv_.Acquire(running_.back()->max());
    return *running_.back();
  }
  // One that has its prompt behind it.
  Sequence& AddDecoding(const std::string& id, Tier tier, int64_t max_tokens = 100) {
    Sequence& sequence = AddRunning(id, 4, tier, max_tokens);
    SequenceResult result;
    result.chosen.push_back({.token = 1, .logprob = 0, .top_tokens = {}, .top_logprobs = {}});
    sequence.Advance(4, result);
    return sequence;
  }
  void AddWaiting(const std::string& id, Tier tier, int priority = 0, int64_t max_tokens = 10) {
    RequestSpec spec = MakeSpec(id, 4, max_tokens, tier);
    spec.priority = priority;
    waiting_.push_back(std::make_unique<Sequence>(spec, nullptr, absl::ZeroDuration()));
  }
  static std::vector<std::string> Ids(const Plan& plan) {
    std::vector<std::string> ids;
    for (const Sequence* sequence : plan.sequences) ids.push_back(sequence->spec().id);
    return ids;
  }
  static int Rows(const Plan& plan) {
    int rows = 0;
    for (const SequenceStep& step : plan.round.steps) rows += step.rows();
    return rows;
  }

  SchedulerOptions options_{.max_batch_tokens = 64, .draft_block_max = 8};
  KvCache kv_{32, 2048, 8};
  Scheduler::Running running_;
  Scheduler::Waiting waiting_;
};

using testing::ElementsAre;

TEST_F(SchedulerTest, AloneDecodesWithAFullBlock) {
  AddDecoding("a", Tier::kStandard);
  Scheduler scheduler(options_);
  const Plan plan = scheduler.PlanRound(running_);
  ASSERT_EQ(plan.round.steps.size(), 1u);
  EXPECT_EQ(plan.round.steps[0].block, 8);
  const double reach_min = ReachMin({{.acceptance = SpeculationState().acceptance()}},
                                    {{.block = 8}}, 8, options_.draft_costs.At(5));
  EXPECT_GT(reach_min, 0);
  EXPECT_FLOAT_EQ(plan.round.steps[0].reach_min, static_cast<float>(reach_min));
  EXPECT_TRUE(plan.round.steps[0].sample);
}

TEST_F(SchedulerTest, BlockNeverPassesMaxTokens) {
  AddDecoding("a", Tier::kStandard, 4);  // three are left
  Scheduler scheduler(options_);
  EXPECT_LE(scheduler.PlanRound(running_).round.steps[0].block, 3);
}

TEST_F(SchedulerTest, SpeculationOffMeansOneRow) {
  RequestSpec spec = MakeSpec("a", 4, 50);
  spec.speculation = false;
  running_.push_back(std::make_unique<Sequence>(spec, nullptr, absl::ZeroDuration()));
  running_.back()->lease = kv_.Acquire(54);
  SequenceResult result;
  result.chosen.resize(1);
  running_.back()->Advance(4, result);
  Scheduler scheduler(options_);
  EXPECT_EQ(scheduler.PlanRound(running_).round.steps[0].block, 1);
}

TEST_F(SchedulerTest, LowAcceptanceTrimsTheDraft) {
  Sequence& sequence = AddDecoding("a", Tier::kUltraspeed);
  for (int i = 0; i < 30; ++i) sequence.speculation.Record(7, 0);
  Scheduler scheduler(options_);
  EXPECT_LE(scheduler.PlanRound(running_).round.steps[0].block, 2);
}

// Of either tier; a row each if there are more sequences than rows.
TEST_F(SchedulerTest, SequencesDivideOneBlock) {
  const std::vector<std::vector<int>> divisions = {
      {8}, {4, 4}, {3, 3, 2}, {2, 2, 2, 2}, {2, 2, 2, 1, 1}};
  for (const Tier tier : {Tier::kStandard, Tier::kUltraspeed}) {
    running_.clear();
    options_.ultraspeed_batch_max = 16;
    options_.draft_costs = {};  // all rows are wanted
    for (size_t count = 1; count <= 10; ++count) {
      AddDecoding(absl::StrCat("s", count), tier);
      const Plan plan = Scheduler(options_).PlanRound(running_);
      std::vector<int> blocks;
      for (const SequenceStep& step : plan.round.steps) blocks.push_back(step.block);
      if (count <= divisions.size()) {
        EXPECT_EQ(blocks, divisions[count - 1]);
      } else {
        EXPECT_EQ(Rows(plan), std::max<int>(8, static_cast<int>(count)));
      }
    }
  }
}

// Where the executor has a second block and all rows are wanted.
TEST_F(SchedulerTest, SequencesDivideTwoBlocks) {
  options_.draft_costs = {};
  options_.decode_blocks_max = 2;
  const std::vector<std::vector<int>> divisions = {{8}, {8, 8}, {6, 5, 5}, {4, 4, 4, 4}};
  for (size_t count = 1; count <= divisions.size(); ++count) {
    AddDecoding(absl::StrCat("s", count), Tier::kStandard);
    std::vector<int> blocks;
    for (const SequenceStep& step : Scheduler(options_).PlanRound(running_).round.steps)
      blocks.push_back(step.block);
    EXPECT_EQ(blocks, divisions[count - 1]);
  }
}

// What one does not want is there for the next.
TEST_F(SchedulerTest, RowsThatASequenceLeavesAreTheOthers) {
  Sequence& hard = AddDecoding("hard", Tier::kStandard);
  for (int i = 0; i < 60; ++i) hard.speculation.Record(7, 0);
  AddDecoding("easy", Tier::kStandard);
  const Plan plan = Scheduler(options_).PlanRound(running_);
  ASSERT_EQ(plan.round.steps.size(), 2u);
  EXPECT_LE(plan.round.steps[0].block, 2);
  EXPECT_EQ(Rows(plan), 8);
}

// A sequence whose text repeats itself brings its drafts along: as many as the executor takes when
// it is alone, else its share; never past max_tokens, and none without speculation.
class LookupSchedulerTest : public SchedulerTest {
 protected:
  Sequence& AddRepeating(const std::string& id, int64_t max_tokens = 100, bool speculation = true) {
    RequestSpec spec = MakeSpec(id, 40, max_tokens);
    for (size_t i = 0; i < spec.prompt.size(); ++i)
      spec.prompt[i] = static_cast<int32_t>(i % 20 + 1);
    spec.speculation = speculation;
    running_.push_back(std::make_unique<Sequence>(spec, nullptr, absl::ZeroDuration()));
    Sequence& sequence = *running_.back();
    sequence.lease = kv_.Acquire(sequence.max());
    SequenceResult result;
    result.chosen.push_back({.token = 1, .logprob = 0, .top_tokens = {}, .top_logprobs = {}});
    sequence.Advance(40, result);
    return sequence;
  }
  std::vector<int32_t> Drafts(const SequenceStep& step) {
    return {step.drafts, step.drafts + step.num_drafts};
  }
};

TEST_F(LookupSchedulerTest, DraftsWhatFollowedInTheText) {
  options_.given_drafts_max = 15;
  AddRepeating("a");
  const Plan plan = Scheduler(options_).PlanRound(running_);
  EXPECT_THAT(Drafts(plan.round.steps[0]),
              ElementsAre(2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16));
  EXPECT_EQ(plan.round.steps[0].block, 8);  // what the drafter would have made
}

TEST_F(LookupSchedulerTest, OnlyAsManyAsThereAreTokensLeft) {
  options_.given_drafts_max = 15;
  AddRepeating("a", 4);  // three are left: two drafts and the choice behind them
  EXPECT_THAT(Drafts(Scheduler(options_).PlanRound(running_).round.steps[0]), ElementsAre(2, 3));
}

TEST_F(LookupSchedulerTest, NoneWhereNobodyWantsThem) {
  AddRepeating("a");
  EXPECT_FALSE(Scheduler(options_).PlanRound(running_).round.steps[0].brings_drafts());
  options_.given_drafts_max = 7;
  EXPECT_TRUE(Scheduler(options_).PlanRound(running_).round.steps[0].brings_drafts());
  options_.looks_up_drafts = false;
  EXPECT_FALSE(Scheduler(options_).PlanRound(running_).round.steps[0].brings_drafts());
  options_.looks_up_drafts = true;
  running_.clear();
  AddRepeating("b", 100, /*speculation=*/false);
  EXPECT_FALSE(Scheduler(options_).PlanRound(running_).round.steps[0].brings_drafts());
}

TEST_F(LookupSchedulerTest, WithoutADrafterToo) {
  options_.draft_block_max = 1;
  options_.given_drafts_max = 7;
  AddRepeating("a");
  const Plan plan = Scheduler(options_).PlanRound(running_);
  EXPECT_EQ(plan.round.steps[0].num_drafts, 7);
  EXPECT_EQ(plan.round.steps[0].block, 1);
}

TEST_F(LookupSchedulerTest, SeveralDivideABlock) {
  options_.given_drafts_max = 15;
  AddRepeating("a");
  AddRepeating("b");
  AddDecoding("c", Tier::kStandard);
  const Plan plan = Scheduler(options_).PlanRound(running_);
  EXPECT_TRUE(plan.round.steps[0].brings_drafts());
  EXPECT_FALSE(plan.round.steps[2].brings_drafts());
  EXPECT_LE(Rows(plan), 8);
}

// Who drafts badly in a text goes back to the drafter.
TEST_F(LookupSchedulerTest, WrongDraftsAreGivenUp) {
  options_.given_drafts_max = 7;
  Sequence& sequence = AddRepeating("a");
  const std::vector<ChosenToken> other = {
      {.token = 999, .logprob = 0, .top_tokens = {}, .top_logprobs = {}}};
  for (int i = 0; i < 40; ++i) {
    sequence.lookup.Propose(sequence.tokens(), 7);
    sequence.lookup.Record(other);
  }
  const Plan plan = Scheduler(options_).PlanRound(running_);
  EXPECT_FALSE(plan.round.steps[0].brings_drafts());
  EXPECT_EQ(plan.round.steps[0].block, 8);
}

TEST_F(SchedulerTest, UltraspeedRunsAloneAndStandardIsNeverStarved) {
  AddDecoding("fast", Tier::kUltraspeed);
  AddDecoding("slow1", Tier::kStandard);
  AddDecoding("slow2", Tier::kStandard);
  Scheduler scheduler(options_);
  int rounds_without = 0;
  int standard_rounds = 0;
  for (int i = 0; i < 90; ++i) {
    const std::vector<std::string> ids = Ids(scheduler.PlanRound(running_));
    scheduler.RecordRound(absl::Milliseconds(1));
    if (ids == std::vector<std::string>{"fast"}) {
      ASSERT_LE(++rounds_without, options_.standard_floor_rounds);
    } else {
      ASSERT_THAT(ids, testing::UnorderedElementsAre("slow1", "slow2"));
      rounds_without = 0;
      ++standard_rounds;
    }
  }
  EXPECT_EQ(standard_rounds, 10);
}

// The floor is a share of time: long rounds come rarely, short ones often, never is never.
TEST_F(SchedulerTest, TheFloorIsCountedInTimeNotInRounds) {
  struct Case {
    double standard_ms;  // per round; ultraspeed: 1 ms
    double share;        // of the time, for standard
  };
  const double floor = 1.0 / (1 + options_.standard_floor_rounds);
  for (const Case& one : {Case{1, floor}, Case{5, floor}, Case{0.25, floor},
                          Case{1000, 1000.0 / (1000 + options_.standard_floor_rounds_max)}}) {
    running_.clear();
    AddDecoding("fast", Tier::kUltraspeed);
    AddDecoding("slow", Tier::kStandard);
    Scheduler scheduler(options_);
    double standard_ms = 0;
    double total_ms = 0;
    for (int i = 0; i < 3000; ++i) {
      const bool is_standard = Ids(scheduler.PlanRound(running_))[0] == "slow";
      const double ms = is_standard ? one.standard_ms : 1;
      scheduler.RecordRound(absl::Milliseconds(ms));
      standard_ms += is_standard ? ms : 0;
      total_ms += ms;
    }
    EXPECT_NEAR(standard_ms / total_ms, one.share, 0.03 * one.share) << one.standard_ms << " ms";
  }
}

TEST_F(SchedulerTest, UltraspeedThatArrivesGoesNext) {
  AddDecoding("slow", Tier::kStandard);
  Scheduler scheduler(options_);
  for (int i = 0; i < 50; ++i) {
    EXPECT_THAT(Ids(scheduler.PlanRound(running_)), ElementsAre("slow"));
    scheduler.RecordRound(absl::Milliseconds(20));
  }
  AddDecoding("fast", Tier::kUltraspeed);
  EXPECT_THAT(Ids(scheduler.PlanRound(running_)), ElementsAre("fast"));
}

TEST_F(SchedulerTest, StandardRoundsAreSmallBesideUltraspeedAndServeEveryoneInTurn) {
  options_.standard_rows_beside_ultraspeed = 6;
  options_.standard_floor_rounds = 1;
  AddDecoding("fast", Tier::kUltraspeed);
  for (int i = 0; i < 9; ++i) AddDecoding(absl::StrCat("d", i), Tier::kStandard);
  Sequence& lengthy = AddRunning("long", 300, Tier::kStandard);
  Scheduler scheduler(options_);
  std::map<std::string, int> served;
  int standard_rounds = 0;
  for (int i = 0; i < 60; ++i) {
    const Plan plan = scheduler.PlanRound(running_);
    scheduler.RecordRound(absl::Milliseconds(1));
    if (Ids(plan)[0] == "fast") continue;
    ASSERT_LE(Rows(plan), 6);
    ++standard_rounds;
    for (size_t j = 0; j < plan.sequences.size(); ++j) {
      ++served[plan.sequences[j]->spec().id];
      if (plan.sequences[j] == &lengthy)
        lengthy.Advance(plan.round.steps[j].num_tokens, SequenceResult());
    }
  }
  EXPECT_EQ(standard_rounds, 30);
  EXPECT_EQ(served["long"], 30) << "a prompt gets on beside many decodes";
  for (int i = 0; i < 9; ++i) EXPECT_NEAR(served[absl::StrCat("d", i)], 10, 1);
}

TEST_F(SchedulerTest, UltraspeedBatchIsTinyAndTakesTurns) {
  for (const char* id : {"a", "b", "c"}) AddDecoding(id, Tier::kUltraspeed);
  Scheduler scheduler(options_);
  std::map<std::string, int> served;
  for (int i = 0; i < 30; ++i) {
    const std::vector<std::string> ids = Ids(scheduler.PlanRound(running_));
    ASSERT_EQ(ids.size(), 2u);
    for (const std::string& id : ids) ++served[id];
  }
  EXPECT_EQ(served["a"], 20);
  EXPECT_EQ(served["b"], 20);
  EXPECT_EQ(served["c"], 20);
}

TEST_F(SchedulerTest, LongPromptRidesBesideDecodes) {
  options_.prefill_tokens_per_round = 16;
  AddDecoding("busy", Tier::kStandard);
  Sequence& lengthy = AddRunning("long", 100, Tier::kStandard);
  Scheduler scheduler(options_);
  int rounds = 0;
  while (!lengthy.is_decoding()) {
    const Plan plan = scheduler.PlanRound(running_);
    ASSERT_THAT(Ids(plan), ElementsAre("busy", "long")) << "every round decodes the busy one";
    const SequenceStep& step = plan.round.steps[1];
    ASSERT_LE(step.num_tokens, 16);
    ASSERT_EQ(step.sample, lengthy.computed() + step.num_tokens == 100);
    SequenceResult result;
    if (step.sample) result.chosen.resize(1);
    lengthy.Advance(step.num_tokens, result);
    ++rounds;
  }
  EXPECT_EQ(rounds, 7);
}

TEST_F(SchedulerTest, LonePromptTakesTheWholeRound) {
  AddRunning("long", 100, Tier::kStandard);
  Scheduler scheduler(options_);
  const Plan plan = scheduler.PlanRound(running_);
  EXPECT_EQ(plan.round.steps[0].num_tokens, 64);
  EXPECT_FALSE(plan.round.steps[0].sample);
}

TEST_F(SchedulerTest, RowsStayWithinTheRound) {
  options_.max_batch_tokens = 10;
  for (int i = 0; i < 4; ++i) AddDecoding(absl::StrCat("d", i), Tier::kUltraspeed);
  AddRunning("p1", 30, Tier::kUltraspeed);
  AddRunning("p2", 30, Tier::kStandard);
  Scheduler scheduler(options_);
  for (int i = 0; i < 40; ++i) {
    const Plan plan = scheduler.PlanRound(running_);
    ASSERT_GE(Rows(plan), 1);
    ASSERT_LE(Rows(plan), 10);
  }
}

TEST_F(SchedulerTest, AdmitsUltraspeedThenPriorityThenFirstCome) {
  AddWaiting("s1", Tier::kStandard);
  AddWaiting("s2", Tier::kStandard, 5);
  AddWaiting("u1", Tier::kUltraspeed);
  AddWaiting("s3", Tier::kStandard);
  AddWaiting("u2", Tier::kUltraspeed);
  Scheduler scheduler(options_);
  std::vector<std::string> order;
  while (auto sequence = scheduler.Admit(waiting_, kv_)) order.push_back(sequence->spec().id);
  EXPECT_THAT(order, ElementsAre("u1", "u2", "s2", "s1", "s3"));
}

TEST_F(SchedulerTest, AdmissionFloorLetsStandardIn) {
  for (int i = 0; i < 20; ++i) AddWaiting(absl::StrCat("u", i), Tier::kUltraspeed);
  AddWaiting("s", Tier::kStandard);
  Scheduler scheduler(options_);
  int place = 0;
  while (scheduler.Admit(waiting_, kv_)->spec().id != "s") ++place;
  EXPECT_EQ(place, options_.standard_floor_rounds);
}

TEST_F(SchedulerTest, NothingOvertakesARequestThatWaitsForMemory) {
  KvCache small(4, 4, 8);
  KvLease taken = small.Acquire(16);
  AddWaiting("big", Tier::kStandard, 0, 20);  // 24 tokens: three pages, two are free
  AddWaiting("small", Tier::kStandard, 0, 4);
  Scheduler scheduler(options_);
  EXPECT_EQ(scheduler.Admit(waiting_, small), nullptr);
  small.Release(taken);
  EXPECT_EQ(scheduler.Admit(waiting_, small)->spec().id, "big");
}

}  // namespace
}  // namespace ultraspeed::worker
