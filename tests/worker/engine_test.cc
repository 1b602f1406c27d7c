#include "worker/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "tests/worker/scripted_executor.h"

namespace ultraspeed::worker {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// An engine driven by Step on the test's thread, over a clock that stands still.
class EngineTest : public testing::Test {
 protected:
  void Create(ScriptedOptions scripted = {}, EngineOptions options = {}) {
    scripted_ = scripted;
    auto executor = std::make_unique<ScriptedExecutor>(scripted);
    executor_ = executor.get();
    engine_ = std::make_unique<Engine>(std::move(executor), options, clock_, nullptr);
  }
  std::shared_ptr<RecordingSink> Submit(const RequestSpec& spec) {
    auto sink = std::make_shared<RecordingSink>();
    const absl::Status status = engine_->Submit(spec, sink);
    EXPECT_TRUE(status.ok()) << status;
    return sink;
  }
  int RunAll() {
    int steps = 0;
    while (engine_->Step()) {
      engine_->CheckIntegrity();
      ++steps;
    }
    return steps;
  }

  FakeClock clock_;
  ScriptedOptions scripted_;
  ScriptedExecutor* executor_ = nullptr;  // the engine's
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTest, OneRequestGetsItsTokensAndOneTerminalEvent) {
  Create();
  const RequestSpec spec = MakeSpec("a", 10, 50);
  const auto sink = Submit(spec);
  RunAll();
  EXPECT_EQ(sink->tokens, ExpectedTokens(spec, 1000));
  EXPECT_EQ(sink->finish, FinishReason::kLength);
  EXPECT_EQ(sink->num_terminal, 1);
  EXPECT_EQ(sink->usage.prompt_tokens, 10);
  EXPECT_EQ(sink->usage.completion_tokens, 50);
  EXPECT_LT(sink->usage.draft_rounds, 12) << "every draft was accepted";
  const EngineLoad load = engine_->Load();
  EXPECT_EQ(load.running + load.waiting, 0);
  EXPECT_EQ(load.kv_tokens_used, 0);
  EXPECT_EQ(load.requests_total, 1u);
  EXPECT_EQ(load.prompt_tokens_total, 10u);
  EXPECT_EQ(load.completion_tokens_total, 50u);
}

TEST_F(EngineTest, TextDoesNotDependOnSpeculationAcceptanceOrBatch) {
  RequestSpec spec = MakeSpec("a", 20, 100);
  const std::vector<int32_t> expected = ExpectedTokens(spec, 1000);
  for (const int accepted : {0, 1, 3, 7}) {
    for (const bool busy : {false, true}) {
      Create();
      executor_->accept = [=](int num_drafted) { return std::min(accepted, num_drafted); };
      const auto sink = Submit(spec);
      if (busy) {
        Submit(MakeSpec("b", 90, 60));
        Submit(MakeSpec("c", 5, 60, Tier::kUltraspeed));
      }
      RunAll();
      EXPECT_EQ(sink->tokens, expected) << accepted << " accepted, busy " << busy;
    }
  }
  Create();
  spec.speculation = false;
  const auto sink = Submit(spec);
  RunAll();
  EXPECT_EQ(sink->tokens, expected);
  EXPECT_EQ(sink->usage.draft_rounds, 100);
}

TEST_F(EngineTest, StopTokenEndsTheText) {
  Create({.vocabulary = 20});
  RequestSpec spec = MakeSpec("a", 1, 400);
  spec.prompt = {3};
  spec.stop_token_ids = {5};
  const auto sink = Submit(spec);
  RunAll();
  EXPECT_EQ(sink->finish, FinishReason::kStop);
  EXPECT_EQ(sink->stop_token, 5);
  EXPECT_EQ(sink->tokens, ExpectedTokens(spec, 20));
  EXPECT_EQ(sink->tokens.back(), 5);
}

TEST_F(EngineTest, CancelFreesTheSlotWithinOneRound) {
  Create({.max_sequences = 1});
  const auto busy = Submit(MakeSpec("a", 4, 400));
  const auto next = Submit(MakeSpec("b", 4, 8));
  engine_->Step();
  engine_->Step();
  EXPECT_THAT(engine_->RunningIds(), ElementsAre("a"));
  const int64_t tokens_before = busy->usage.completion_tokens;
  EXPECT_TRUE(engine_->Cancel("a"));
  engine_->Step();
  EXPECT_EQ(busy->finish, FinishReason::kCancelled);
  EXPECT_EQ(busy->usage.completion_tokens, tokens_before) << "no token after the cancel";
  EXPECT_THAT(engine_->RunningIds(), ElementsAre("b"));
  EXPECT_FALSE(engine_->Cancel("a")) << "not known any more";
  RunAll();
  EXPECT_EQ(next->finish, FinishReason::kLength);
  EXPECT_EQ(engine_->Load().completion_tokens_total, static_cast<uint64_t>(tokens_before + 8));
}

TEST_F(EngineTest, CancelOfAWaitingRequest) {
  Create({.max_sequences = 1});
  Submit(MakeSpec("a", 4, 400));
  const auto waiting = Submit(MakeSpec("b", 4, 8));
  engine_->Step();
  EXPECT_EQ(engine_->Load().waiting, 1);
  EXPECT_TRUE(engine_->Cancel("b"));
  engine_->Step();
  EXPECT_EQ(waiting->finish, FinishReason::kCancelled);
  EXPECT_TRUE(waiting->tokens.empty());
  EXPECT_EQ(engine_->Load().waiting, 0);
}

TEST_F(EngineTest, LongPrefillDoesNotStallADecodingRequest) {
  EngineOptions options;
  options.scheduler.prefill_tokens_per_round = 16;
  Create({.num_pages = 128}, options);
  const auto busy = Submit(MakeSpec("busy", 4, 300));
  engine_->Step();
  const auto lengthy = Submit(MakeSpec("long", 200, 10));
  int rounds = 0;
  while (lengthy->tokens.empty()) {
    const size_t before = busy->tokens.size();
    ASSERT_TRUE(engine_->Step());
    ASSERT_GT(busy->tokens.size(), before) << "round " << rounds;
    ++rounds;
  }
  EXPECT_GE(rounds, 200 / 16);
}

TEST_F(EngineTest, UltraspeedOvertakesStandard) {
  Create();
  const auto slow = Submit(MakeSpec("slow", 4, 200));
  for (int i = 0; i < 3; ++i) engine_->Step();
  const auto fast = Submit(MakeSpec("fast", 4, 60, Tier::kUltraspeed));
  const size_t slow_before = slow->tokens.size();
  while (fast->num_terminal == 0) ASSERT_TRUE(engine_->Step());
  EXPECT_LE(slow->tokens.size() - slow_before, 16u) << "at most the floor's rounds";
  RunAll();
  EXPECT_EQ(slow->num_terminal, 1);
}

TEST_F(EngineTest, RefusesWhatItMust) {
  Create({.max_sequences = 1}, {.waiting_max = 1, .scheduler = {}});
  Submit(MakeSpec("a", 4, 100));
  Submit(MakeSpec("b", 4, 100));
  const auto sink = std::make_shared<RecordingSink>();
  absl::Status status = engine_->Submit(MakeSpec("b", 4, 100), sink);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()), HasSubstr("request_id=b"));
  status = engine_->Submit(MakeSpec("c", 4, 100), sink);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("at most 2"));
  status = engine_->Submit(MakeSpec("d", 4, 0), sink);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  engine_->Drain();
  status = engine_->Submit(MakeSpec("e", 4, 100), sink);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  RunAll();
  EXPECT_EQ(sink->num_events, 0) << "a refused request has no events";
  EXPECT_EQ(engine_->Load().requests_total, 2u) << "accepted requests finish while draining";
}

TEST_F(EngineTest, ContextIsBoundedByMemory) {
  Create({.page_tokens = 8, .num_pages = 4, .context_tokens = 512});
  EXPECT_EQ(engine_->bounds().context_tokens, 32);
  const auto sink = Submit(MakeSpec("a", 10, 22));
  RunAll();
  EXPECT_EQ(sink->usage.completion_tokens, 22);
  EXPECT_EQ(engine_->Submit(MakeSpec("b", 10, 23), sink).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(EngineTest, IdMayBeUsedAgainAfterTheEnd) {
  Create();
  Submit(MakeSpec("a", 4, 5));
  RunAll();
  const auto again = Submit(MakeSpec("a", 4, 5));
  RunAll();
  EXPECT_EQ(again->finish, FinishReason::kLength);
}

TEST_F(EngineTest, StopEndsEverythingWithShutdown) {
  Create({.max_sequences = 1});
  const auto running = Submit(MakeSpec("a", 4, 400));
  const auto waiting = Submit(MakeSpec("b", 4, 400));
  engine_->Step();
  const auto in_inbox = Submit(MakeSpec("c", 4, 400));
  engine_->Stop();
  for (const auto& sink : {running, waiting, in_inbox}) {
    EXPECT_EQ(sink->finish, FinishReason::kShutdown);
    EXPECT_EQ(sink->num_terminal, 1);
  }
  EXPECT_EQ(engine_->Submit(MakeSpec("d", 4, 5), running).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine_->Load().kv_tokens_used, 0);
}

TEST_F(EngineTest, LoadReportsRateAndAcceptance) {
  Create();
  executor_->accept = [](int num_drafted) { return std::min(3, num_drafted); };
  executor_->before_round = [this](const Round&) { clock_.Advance(absl::Milliseconds(10)); };
  Submit(MakeSpec("a", 4, 400));
  for (int i = 0; i < 80; ++i) engine_->Step();
  const EngineLoad load = engine_->Load();
  EXPECT_GT(load.mean_acceptance_length, 2.5);
  EXPECT_LE(load.mean_acceptance_length, 4.0);
  EXPECT_GT(load.tokens_per_second, 200);
  clock_.Advance(absl::Seconds(2));
  EXPECT_EQ(engine_->Load().tokens_per_second, 0);
}

TEST_F(EngineTest, WorksWithoutADrafter) {
  Create({.draft_block = 1});
  const RequestSpec spec = MakeSpec("a", 10, 30, Tier::kUltraspeed);
  const auto sink = Submit(spec);
  RunAll();
  EXPECT_EQ(sink->tokens, ExpectedTokens(spec, 1000));
}

TEST_F(EngineTest, LogprobsReachTheSink) {
  Create();
  struct LogprobSink : TokenSink {
    void OnTokens(TokenEvent event) override {
      for (const ChosenToken& chosen : event.tokens) {
        EXPECT_EQ(chosen.top_tokens.size(), 3u);
        EXPECT_FLOAT_EQ(chosen.logprob, -0.5f);
        ++num_tokens;
      }
    }
    int num_tokens = 0;
  };
  auto sink = std::make_shared<LogprobSink>();
  RequestSpec spec = MakeSpec("a", 4, 20);
  spec.logprobs = 3;
  ASSERT_TRUE(engine_->Submit(spec, sink).ok());
  RunAll();
  EXPECT_EQ(sink->num_tokens, 20);
}

class CountingObserver : public EngineObserver {
 public:
  void OnRound(const RoundStats& stats) override {
    rows += stats.num_rows;
    drafted = stats.acceptance->of_drafter.verified;
    accepted = stats.acceptance->of_drafter.accepted;
    of_text = stats.acceptance->of_text;
  }
  void OnFinish(const RequestStats& stats) override {
    ++finished;
    last = stats;
  }
  void OnLoad(const EngineLoad&) override {}

  int rows = 0;
  int64_t drafted = 0;
  int64_t accepted = 0;
  AcceptanceTotals::Drafts of_text;
  int finished = 0;
  RequestStats last;
};

TEST_F(EngineTest, ObserverSeesTimesAndCounts) {
  CountingObserver observer;
  auto executor = std::make_unique<ScriptedExecutor>(ScriptedOptions{});
  executor->accept = [](int num_drafted) { return num_drafted / 2; };
  executor->before_round = [this](const Round&) { clock_.Advance(absl::Milliseconds(10)); };
  Engine engine(std::move(executor), {}, clock_, &observer);
  const auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(engine.Submit(MakeSpec("a", 10, 41), sink).ok());
  clock_.Advance(absl::Milliseconds(5));
  while (engine.Step()) {
  }
  EXPECT_EQ(observer.finished, 1);
  EXPECT_EQ(observer.last.time_to_first_token, absl::Milliseconds(15));
  const int64_t decode_rounds = sink->usage.draft_rounds - 1;
  EXPECT_EQ(observer.last.time_per_output_token, absl::Milliseconds(10) * decode_rounds / 40);
  EXPECT_EQ(observer.accepted + decode_rounds + 1, 41);
  EXPECT_EQ(observer.rows, 10 + decode_rounds + observer.drafted);
}

// What drafts were worth to others decides what a new sequence begins with: where they were always
// wrong, the next one hardly tries.
TEST_F(EngineTest, ANewSequenceBeginsWithWhatIsKnownOfOthers) {
  Create();
  executor_->accept = [](int) { return 0; };
  int drafted = 0;
  executor_->before_round = [&](const Round& round) {
    for (const SequenceStep& step : round.steps) drafted += step.wants_drafts();
  };
  const auto drafted_rounds_of = [&](const std::string& id) {
    drafted = 0;
    Submit(MakeSpec(id, 4, 30));
    RunAll();
    return drafted;
  };
  const int first = drafted_rounds_of("a");
  EXPECT_GT(first, 5);
  EXPECT_LT(drafted_rounds_of("b"), first / 2);
}

// A text of one token repeats itself, so its drafts come from there, all are right, and none is the
// drafter's.
TEST_F(EngineTest, DraftsAreLookedUpWhereATextRepeatsItself) {
  for (const bool looks_up : {true, false}) {
    CountingObserver observer;
    auto executor = std::make_unique<ScriptedExecutor>(
        ScriptedOptions{.vocabulary = 1, .given_drafts_max = 15});
    executor->accept = [](int) { return 0; };
    Engine engine(std::move(executor),
                  {.waiting_max = 1, .scheduler = {.looks_up_drafts = looks_up, .draft_costs = {}}},
                  clock_, &observer);
    RequestSpec spec = MakeSpec("a", 10, 97);
    spec.prompt.assign(10, 0);
    const auto sink = std::make_shared<RecordingSink>();
    ASSERT_TRUE(engine.Submit(spec, sink).ok());
    while (engine.Step()) {
    }
    EXPECT_EQ(sink->tokens, std::vector<int32_t>(97, 0));
    if (looks_up) {
      EXPECT_EQ(observer.drafted, 0);
      EXPECT_EQ(observer.of_text.accepted, observer.of_text.verified);
      EXPECT_EQ(sink->usage.draft_rounds, 7);  // of the prompt, and 96 tokens in rounds of 16
      EXPECT_EQ(observer.of_text.accepted, 96 - 6);
    } else {
      EXPECT_GT(observer.drafted, 0);
      EXPECT_EQ(observer.of_text.verified, 0);
      EXPECT_EQ(sink->usage.draft_rounds, 97);
    }
  }
}

TEST(EngineThreadTest, ServesManySubmittersAndStops) {
  auto executor = std::make_unique<ScriptedExecutor>(ScriptedOptions{});
  Engine engine(std::move(executor), {}, RealClock(), nullptr);
  engine.Start();
  engine.WaitReady();
  std::vector<std::thread> threads;
  std::vector<std::shared_ptr<RecordingSink>> sinks(40);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i) {
        const int n = t * 10 + i;
        sinks[n] = std::make_shared<RecordingSink>();
        const absl::Status status =
            engine.Submit(MakeSpec(absl::StrCat("r", n), 1 + n, 30), sinks[n]);
        EXPECT_TRUE(status.ok()) << status;
        if (n % 3 == 0) engine.Cancel(absl::StrCat("r", n));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(engine.WaitIdle(absl::Seconds(20)));
  engine.Stop();
  for (const auto& sink : sinks) EXPECT_EQ(sink->num_terminal, 1);
  EXPECT_EQ(engine.Load().requests_total, 40u);
}

TEST(RateMeterTest, ForgetsAfterASecond) {
  RateMeter meter;
  const absl::Duration start = absl::Seconds(100);
  for (int i = 0; i < 10; ++i) meter.Add(start + absl::Milliseconds(100) * i, 5);
  EXPECT_EQ(meter.PerSecond(start + absl::Milliseconds(900)), 50);
  EXPECT_EQ(meter.PerSecond(start + absl::Milliseconds(1400)), 25);
  EXPECT_EQ(meter.PerSecond(start + absl::Seconds(3)), 0);
}

// ---- Prompts that begin like earlier ones

class SharedBeginningTest : public EngineTest {
 protected:
  // 16 of max_batch_tokens, so prompts run in chunks.
  void SetUp() override { Create({.max_batch_tokens = 16, .num_snapshots = 8}); }

  std::shared_ptr<RecordingSink> Run(const RequestSpec& spec) {
    const auto sink = Submit(spec);
    RunAll();
    EXPECT_EQ(sink->tokens, ExpectedTokens(spec, 1000)) << spec.id;
    return sink;
  }
  static RequestSpec Continue(const RequestSpec& spec, const RecordingSink& sink,
                              const std::string& id, int num_more_tokens) {
    RequestSpec next = spec;
    next.id = id;
    next.prompt.insert(next.prompt.end(), sink.tokens.begin(), sink.tokens.end());
    for (int i = 0; i < num_more_tokens; ++i) next.prompt.push_back(900 + i);
    return next;
  }
};

TEST_F(SharedBeginningTest, TheNextTurnComputesOnlyWhatIsNew) {
  RequestSpec spec = MakeSpec("turn-0", 50, 30);
  auto sink = Run(spec);
  EXPECT_EQ(sink->usage.cached_tokens, 0);
  for (int turn = 1; turn < 4; ++turn) {
    const int64_t computed = static_cast<int64_t>(spec.prompt.size() + sink->tokens.size()) - 1;
    spec = Continue(spec, *sink, absl::StrCat("turn-", turn), 5);
    sink = Run(spec);
    EXPECT_EQ(sink->usage.cached_tokens, computed / 8 * 8);
    EXPECT_EQ(sink->usage.prompt_tokens, static_cast<int64_t>(spec.prompt.size()));
  }
  EXPECT_EQ(executor_->num_loads, 3);
}

TEST_F(SharedBeginningTest, TheSamePromptAgainStillComputesItsLastToken) {
  for (const int num_tokens : {8, 9, 16, 40, 41}) {
    Create({.max_batch_tokens = 16, .num_snapshots = 8});
    RequestSpec spec = MakeSpec("a", num_tokens, 1);
    Run(spec);
    spec.id = "b";
    EXPECT_EQ(Run(spec)->usage.cached_tokens, (num_tokens - 1) / 8 * 8) << num_tokens;
  }
}

TEST_F(SharedBeginningTest, ACommonSystemPromptIsSharedFromTheThirdRequestOn) {
  const std::vector<int64_t> expected = {0, 0, 40, 40};
  for (int i = 0; i < 4; ++i) {
    RequestSpec spec = MakeSpec(absl::StrCat("user-", i), 44, 10);
    for (int k = 0; k < 30; ++k) spec.prompt.push_back(100 * i + k);
    EXPECT_EQ(Run(spec)->usage.cached_tokens, expected[static_cast<size_t>(i)]) << i;
  }
}

TEST_F(SharedBeginningTest, ScopesAndSwitchedOffShareNothing) {
  RequestSpec spec = MakeSpec("a", 40, 10);
  Run(spec);
  spec.id = "b";
  spec.cache_scope = "another tenant";
  EXPECT_EQ(Run(spec)->usage.cached_tokens, 0);
  Create({.max_batch_tokens = 16});
  Run(spec);
  spec.id = "c";
  EXPECT_EQ(Run(spec)->usage.cached_tokens, 0);
}

TEST_F(SharedBeginningTest, ACancelledRequestsWorkIsKept) {
  RequestSpec spec = MakeSpec("a", 100, 200);
  Submit(spec);
  for (int i = 0; i < 4; ++i) engine_->Step();  // 64 of its tokens
  engine_->Cancel("a");
  RunAll();
  spec.id = "b";
  EXPECT_EQ(Run(spec)->usage.cached_tokens, 64);
}

TEST_F(SharedBeginningTest, SequencesThatRunShareTheirPages) {
  RequestSpec spec = MakeSpec("a", 64, 300);
  Run(spec);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  std::vector<RequestSpec> specs;
  for (int i = 0; i < 3; ++i) {
    specs.push_back(MakeSpec(absl::StrCat("b", i), 64, 100));
    specs.back().prompt.push_back(i);
    specs.back().sampling.seed = static_cast<uint64_t>(i);
    sinks.push_back(Submit(specs.back()));
  }
  engine_->Step();
  engine_->CheckIntegrity();
  EXPECT_EQ(engine_->Load().running, 3);
  // 56 of 165 tokens of each are the same pages: 21 pages each without them.
  EXPECT_EQ(engine_->Load().kv_tokens_used, 8 * (3 * 21 - 2 * 7));
  RunAll();
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(sinks[i]->tokens, ExpectedTokens(specs[i], 1000));
}

TEST_F(SharedBeginningTest, KeptPagesAreGivenUpWhenARequestNeedsThem) {
  Create({.num_pages = 16, .num_snapshots = 8});
  Run(MakeSpec("a", 60, 60));
  RequestSpec other = MakeSpec("b", 60, 68);
  for (int32_t& token : other.prompt) token += 3;
  EXPECT_EQ(Run(other)->usage.cached_tokens, 0);
  EXPECT_EQ(engine_->Load().kv_tokens_used, 0);
  engine_->CheckIntegrity();
}

}  // namespace
}  // namespace ultraspeed::worker
