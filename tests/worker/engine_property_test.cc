// Random submits, cancels and drains against the engine's invariants. A failure prints its seed;
// set ULTRASPEED_SEED to repeat it.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <random>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "tests/worker/scripted_executor.h"
#include "worker/engine.h"

namespace ultraspeed::worker {
namespace {

uint32_t FirstSeed() {
  const char* given = std::getenv("ULTRASPEED_SEED");
  return given != nullptr ? static_cast<uint32_t>(std::strtoul(given, nullptr, 10))
                          : std::random_device()();
}

struct Request {
  RequestSpec spec;
  std::shared_ptr<RecordingSink> sink;
  bool cancelled = false;
};

// The prompt begins as far as possible like another request's prompt and output.
void ContinueAnother(std::mt19937& random, const std::vector<Request>& accepted,
                     RequestSpec& spec) {
  const Request& other = accepted[random() % accepted.size()];
  std::vector<int32_t> text = other.spec.prompt;
  text.insert(text.end(), other.sink->tokens.begin(), other.sink->tokens.end());
  const size_t common = std::min(text.size(), spec.prompt.size());
  std::copy_n(text.begin(), random() % 4 == 0 ? random() % (common + 1) : common,
              spec.prompt.begin());
}

struct Seen {
  int64_t cached_tokens = 0;
  int given_drafts = 0;
};

void RunOneHistory(uint32_t seed, Seen& seen) {
  SCOPED_TRACE(testing::Message() << "ULTRASPEED_SEED=" << seed);
  std::mt19937 random(seed);
  const auto below = [&](uint32_t bound) { return static_cast<int>(random() % bound); };
  FakeClock clock;
  // Texts of few tokens repeat themselves, so that drafts are looked up in them.
  const int vocabulary = below(2) == 0 ? 3 : 50;
  ScriptedOptions scripted{.max_sequences = 1 + below(6),
                           .max_batch_tokens = 16 + below(64),
                           .page_tokens = 1 + below(16),
                           .num_pages = 40 + below(60),
                           .vocabulary = vocabulary,
                           .context_tokens = 200,
                           .draft_block = 1 + below(8),
                           .given_drafts_max = below(2) * below(16),
                           .num_snapshots = below(6)};
  auto owned = std::make_unique<ScriptedExecutor>(scripted);
  owned->accept = [&](int num_drafted) { return below(static_cast<uint32_t>(num_drafted) + 1); };
  owned->before_round = [&](const Round& round) {
    clock.Advance(absl::Microseconds(1 + below(5000)));
    for (const SequenceStep& step : round.steps) seen.given_drafts += step.num_drafts;
  };
  const int waiting_max = below(10);
  Engine engine(std::move(owned), {.waiting_max = waiting_max, .scheduler = {}}, clock, nullptr);
  const int64_t context = engine.bounds().context_tokens;
  const int drain_at = below(4) == 0 ? below(400) : 1000;
  std::vector<Request> accepted;
  for (int i = 0; i < 400; ++i) {
    if (i == drain_at) engine.Drain();
    if (below(3) == 0) {
      Request request;
      const int num_prompt_tokens = 1 + below(static_cast<uint32_t>(context - 1));
      request.spec = MakeSpec(absl::StrCat("r", i), num_prompt_tokens,
                              1 + below(static_cast<uint32_t>(context - num_prompt_tokens)),
                              below(3) == 0 ? Tier::kUltraspeed : Tier::kStandard);
      for (int32_t& token : request.spec.prompt) token = below(static_cast<uint32_t>(vocabulary));
      if (!accepted.empty() && below(3) != 0) ContinueAnother(random, accepted, request.spec);
      if (below(4) == 0) request.spec.cache_scope = "b";
      request.spec.sampling.seed = random();
      request.spec.speculation = below(4) != 0;
      request.spec.priority = below(3);
      if (below(2) == 0 && vocabulary > 11) request.spec.stop_token_ids = {7, 11};
      request.sink = std::make_shared<RecordingSink>();
      const absl::Status status = engine.Submit(request.spec, request.sink);
      if (status.ok()) {
        accepted.push_back(request);
      } else {
        ASSERT_EQ(status.code(), i >= drain_at ? absl::StatusCode::kUnavailable
                                               : absl::StatusCode::kResourceExhausted)
            << status;
      }
    }
    if (below(10) == 0 && !accepted.empty()) {
      Request& victim = accepted[below(static_cast<uint32_t>(accepted.size()))];
      const bool alive = victim.sink->num_terminal == 0;
      ASSERT_EQ(engine.Cancel(victim.spec.id), alive);
      victim.cancelled = victim.cancelled || alive;
      engine.Step();
      ASSERT_EQ(victim.sink->num_terminal, 1) << "a cancel is seen at the next round boundary";
    }
    engine.Step();
    engine.CheckIntegrity();
    const EngineLoad load = engine.Load();
    ASSERT_LE(load.running, scripted.max_sequences);
    ASSERT_LE(load.running + load.waiting, scripted.max_sequences + waiting_max);
  }
  for (int i = 0; engine.Step(); ++i) {
    engine.CheckIntegrity();
    ASSERT_LT(i, 100000) << "does not come to rest";
  }
  uint64_t completion_tokens = 0;
  for (const Request& request : accepted) {
    ASSERT_EQ(request.sink->num_terminal, 1) << request.spec.id;
    const std::vector<int32_t> expected = ExpectedTokens(request.spec, vocabulary);
    const std::vector<int32_t>& tokens = request.sink->tokens;
    completion_tokens += tokens.size();
    if (request.sink->finish == FinishReason::kCancelled) {
      ASSERT_TRUE(request.cancelled);
      ASSERT_LE(tokens.size(), expected.size());
      ASSERT_TRUE(std::equal(tokens.begin(), tokens.end(), expected.begin()))
          << "a cancelled text is a prefix";
    } else {
      ASSERT_EQ(tokens, expected) << request.spec.id;
    }
  }
  const EngineLoad load = engine.Load();
  ASSERT_EQ(load.kv_tokens_used, 0);
  ASSERT_EQ(load.running + load.waiting, 0);
  ASSERT_EQ(load.requests_total, accepted.size());
  ASSERT_EQ(load.completion_tokens_total, completion_tokens);
  for (const Request& request : accepted) seen.cached_tokens += request.sink->usage.cached_tokens;
}

TEST(EnginePropertyTest, RandomHistoriesKeepTheInvariants) {
  const uint32_t first = FirstSeed();
  std::printf("first seed %u\n", first);
  Seen seen;
  for (uint32_t i = 0; i < 60; ++i) {
    RunOneHistory(first + i, seen);
    if (testing::Test::HasFatalFailure()) return;
  }
  std::printf("%lld prompt tokens were in memory, %d drafts were looked up\n",
              static_cast<long long>(seen.cached_tokens), seen.given_drafts);
  EXPECT_GT(seen.cached_tokens, 0);
  EXPECT_GT(seen.given_drafts, 0);
}

}  // namespace
}  // namespace ultraspeed::worker
