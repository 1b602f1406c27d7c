// Who waits for whom in the resident engine's round, before a GPU walks it: every wait ends when
// what it needs is there, and no counter is taken again too early.
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/worker/cuda/counted_model.h"

namespace ultraspeed::worker::cuda {
namespace {

using kernels::cuda::resident::kBandRows;
using kernels::cuda::resident::kBandsMax;
using kernels::cuda::resident::kNumCounters;
using kernels::cuda::resident::kOfTarget;
using kernels::cuda::resident::OutputKind;
using kernels::cuda::resident::Phase;
using kernels::cuda::resident::PhaseKind;

// One use of a counter.
struct Use {
  int counter;
  uint32_t arrivals;
  uint32_t reached;        // what the counter shows when all have arrived, in a round from zero
  std::set<size_t> known;  // uses that are over when any block arrives at this one
  // Of the same product's earlier bands, which are over when this one is: blocks arrive in order.
  std::set<size_t> earlier_bands;
};

// How many arrivals end a phase of a pass of `num_bands` bands, of blocks or of tiles of the
// residual stream: program.h and the device's own rules, once more.
uint32_t ArrivalsOf(const Phase& phase, int num_bands, int num_blocks) {
  const bool is_product = phase.kind == PhaseKind::kProduct || phase.kind == PhaseKind::kMoeDown;
  if (is_product && phase.output == OutputKind::kResidual) {
    return static_cast<uint32_t>(phase.num_tiles);
  }
  switch (phase.kind) {
    case PhaseKind::kCommit:
      return 1;  // block 0 decides
    case PhaseKind::kChain:
      return 0;  // what blocks tell each other is its own flag
    case PhaseKind::kAppend:
      return 0;  // read by this block alone, in the next round
    case PhaseKind::kMoeUp:
      return 0;  // what it gives is its own flag
    case PhaseKind::kAttend: {
      if (phase.attention.has_parts) return static_cast<uint32_t>(num_blocks);
      // A unit is 16 of the (row, query head) pairs of a key head and 32 of 128 value dims.
      const int group = phase.attention.num_q_heads / phase.attention.num_kv_heads;
      const int rows = num_bands * kBandRows;
      const int units = phase.attention.num_kv_heads * ((rows * group + 15) / 16) * 4;
      return static_cast<uint32_t>(std::min(units, num_blocks));
    }
    default:
      return static_cast<uint32_t>(num_blocks);
  }
}

// Walks `num_rounds` rounds as blocks do and checks every wait. What a block knows is what every
// block knows at least: one without a unit of attention neither waits nor arrives there.
class Walk {
 public:
  Walk(const ResidentSchedule& schedule, int num_blocks)
      : schedule_(schedule), num_blocks_(num_blocks) {
    for (const Phase& phase : schedule.phases) num_bands_ = std::max(num_bands_, phase.band + 1);
  }

  void Run(int num_rounds) {
    for (int round = 0; round < num_rounds; ++round) {
      SCOPED_TRACE("round " + std::to_string(round));
      round_begin_ = uses_.size();
      std::fill(std::begin(reached_), std::end(reached_), 0);
      for (size_t i = 0; i < schedule_.phases.size(); ++i) {
        SCOPED_TRACE("phase " + std::to_string(i) + ", " + NameOf(i));
        Enter(schedule_.phases[i]);
        if (testing::Test::HasFailure()) return;  // the first says it all
      }
      for (int c = 0; c < kNumCounters; ++c) EXPECT_EQ(schedule_.totals[c], reached_[c]) << c;
      Wait(schedule_.decision_counter, schedule_.decision_target, known_);
      // A block in the next round has seen everything of this one.
      for (size_t u = 0; u < uses_.size(); ++u) EXPECT_TRUE(known_.count(u)) << "use " << u;
    }
  }

 private:
  std::string NameOf(size_t i) const {
    return Name(static_cast<PhaseLabel>(schedule_.phases[i].label));
  }

  void Enter(const Phase& phase) {
    const uint32_t arrivals =
        ArrivalsOf(phase, phase.draft_of == kOfTarget ? num_bands_ : 1, num_blocks_);
    const bool some_pass_by =
        phase.kind == PhaseKind::kAttend && arrivals < static_cast<uint32_t>(num_blocks_);
    std::set<size_t> known = known_;
    if (phase.wait_counter >= 0) Wait(phase.wait_counter, phase.wait_target, known);
    if (phase.kind == PhaseKind::kMoeUp && phase.band == 0) {
      Arrive(phase.inner_counter, static_cast<uint32_t>(num_blocks_), known);
      EXPECT_EQ(phase.inner_target, uses_.back().reached);
      Wait(phase.inner_counter, phase.inner_target, known);
    } else {
      EXPECT_EQ(phase.inner_counter, -1);
    }
    if (arrivals == 0) {
      EXPECT_EQ(phase.arrive_counter, -1);
    } else {
      Arrive(phase.arrive_counter, arrivals, known);
      if (phase.band > 0) {
        const size_t use = uses_.size() - 1;
        uses_[use].earlier_bands = uses_[use - 1].earlier_bands;
        uses_[use].earlier_bands.insert(use - 1);
      }
    }
    if (!some_pass_by) known_ = std::move(known);
  }

  // The counter shows the target exactly when one earlier use of this round is over, and that is
  // the newest one: what others wrote last is what is read next.
  void Wait(int counter, uint32_t target, std::set<size_t>& known) {
    ASSERT_GE(counter, 0);
    ASSERT_LT(counter, kNumCounters);
    size_t use = uses_.size();
    while (use > round_begin_ && uses_[use - 1].counter != counter) --use;
    ASSERT_GT(use, round_begin_) << "waits for counter " << counter << " before any arrival";
    EXPECT_EQ(target, uses_[--use].reached) << "counter " << counter;
    known.insert(use);
    known.insert(uses_[use].known.begin(), uses_[use].known.end());
    known.insert(uses_[use].earlier_bands.begin(), uses_[use].earlier_bands.end());
  }

  void Arrive(int counter, uint32_t arrivals, const std::set<size_t>& known) {
    ASSERT_GE(counter, 0);
    ASSERT_LT(counter, kNumCounters);
    // An arrival at this use while the counter's use before is not over would end its waits early.
    for (size_t u = uses_.size(); u-- > 0;) {
      if (uses_[u].counter != counter) continue;
      EXPECT_TRUE(known.count(u)) << "counter " << counter << " is taken again too early";
      break;
    }
    reached_[counter] += arrivals;
    uses_.push_back({counter, arrivals, reached_[counter], known, {}});
  }

  const ResidentSchedule& schedule_;
  const int num_blocks_;
  int num_bands_ = 1;      // of the target's rows
  std::vector<Use> uses_;  // of all rounds
  size_t round_begin_ = 0;
  uint32_t reached_[kNumCounters] = {};  // in this round
  std::set<size_t> known_;
};

TEST(ResidentWaitsTest, EveryWaitEndsWhenWhatItNeedsIsThereAndNoEarlier) {
  const std::vector<std::pair<const char*, std::function<ModelConfig()>>> shapes = {
      {"tiny-mimo", TinyMimo},
      {"served rank", ServedRank},
      {"tiny-mimo without a drafter", [] { return WithoutDrafter(TinyMimo()); }},
      {"served rank without a drafter", [] { return WithoutDrafter(ServedRank()); }}};
  for (const auto& [name, shape] : shapes) {
    for (const int num_blocks : {4, 128, kNumBlocks}) {
      const CountedModel model(shape(), {}, num_blocks);
      for (const RoundKind& kind : kAllRounds) {
        if (kind.draft_passes > 0 && !model.has_drafter()) continue;
        SCOPED_TRACE(std::string(name) + ", " + std::to_string(kind.draft_passes) +
                     " drafter's passes, " + std::to_string(kind.num_bands) + " bands, " +
                     (kind.whole_rows ? "whole rows, " : "") + std::to_string(num_blocks) +
                     " blocks");
        const ResidentSchedule schedule = model.Schedule(kind);
        Walk(schedule, num_blocks).Run(/*num_rounds=*/2);
      }
    }
  }
}

// The walk above would notice: a schedule with one wait, counter or total wrong does not pass.
TEST(ResidentWaitsTest, TheWalkSeesABrokenSchedule) {
  const CountedModel model(TinyMimo());
  const auto failures = [&](const std::function<void(ResidentSchedule&)>& damage) {
    ResidentSchedule schedule = model.Schedule(/*drafts=*/true);
    damage(schedule);
    testing::TestPartResultArray results;
    {
      testing::ScopedFakeTestPartResultReporter reporter(
          testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &results);
      Walk(schedule, kNumBlocks).Run(2);
    }
    return results.size();
  };
  EXPECT_EQ(failures([](ResidentSchedule&) {}), 0);
  EXPECT_GT(failures([](ResidentSchedule& s) { s.phases[3].wait_target += 1; }), 0);
  EXPECT_GT(failures([](ResidentSchedule& s) { s.phases[3].arrive_counter ^= 1; }), 0);
  EXPECT_GT(failures([](ResidentSchedule& s) { s.totals[2] += 1; }), 0);
  EXPECT_GT(failures([](ResidentSchedule& s) { s.decision_target -= 1; }), 0);
  EXPECT_GT(failures([](ResidentSchedule& s) { s.phases.back().wait_counter = -1; }), 0);
}

TEST(ResidentWaitsTest, WaitForNothingARoundsFirstPhaseTheFeaturesAndTheExpertsDown) {
  const CountedModel model(ServedRank());
  for (const RoundKind& kind : kAllRounds) {
    const ResidentSchedule schedule = model.Schedule(kind);
    for (size_t i = 0; i < schedule.phases.size(); ++i) {
      const Phase& phase = schedule.phases[i];
      // The input of an expert's down is its own flag; experts are chosen with the first band.
      const bool free = i == 0 || phase.output == OutputKind::kFeatures ||
                        phase.kind == PhaseKind::kMoeDown ||
                        (phase.kind == PhaseKind::kMoeUp && phase.band > 0);
      EXPECT_EQ(phase.wait_counter < 0, free) << i;
    }
  }
}

// What roles count by: the number of earlier phases that finishers work for, of sums over ranks, of
// layers of experts that are over and of writes of the residual stream.
TEST(ResidentWaitsTest, PhasesKnowWhatLiesBeforeThem) {
  const CountedModel model(ServedRank());
  const int num_moe = static_cast<int>(
      std::count(model.config().is_moe.begin(), model.config().is_moe.end(), true));
  const uint32_t num_layers = static_cast<uint32_t>(model.config().num_layers);
  const uint32_t num_drafter_layers = static_cast<uint32_t>(model.config().drafter.num_layers);
  for (const RoundKind& kind : kAllRounds) {
    const ResidentSchedule schedule = model.Schedule(kind);
    uint32_t products = 0, sums = 0, moe_layers = 0;
    std::vector<uint32_t> rows(kBandsMax);
    for (size_t i = 0; i < schedule.phases.size(); ++i) {
      const Phase& phase = schedule.phases[i];
      EXPECT_EQ(phase.index, static_cast<int>(i));
      EXPECT_EQ(phase.before.products, products);
      EXPECT_EQ(phase.before.sums, sums);
      EXPECT_EQ(phase.before.moe_layers, moe_layers);
      EXPECT_EQ(std::vector<uint32_t>(std::begin(phase.before.rows), std::end(phase.before.rows)),
                rows);
      if (phase.num_tiles > 0) products += 1;
      if (phase.num_tiles > 0 && phase.output == OutputKind::kResidual) sums += 1;
      const bool last_band = phase.band + 1 == kind.num_bands;
      if (phase.kind == PhaseKind::kMoeDown && last_band) moe_layers += 1;
      if (phase.output != OutputKind::kResidual && phase.output != OutputKind::kFeatures) continue;
      if (phase.kind == PhaseKind::kEmbed && phase.draft_of == kOfTarget) {
        for (int band = 0; band < kind.num_bands; ++band) rows[static_cast<size_t>(band)] += 1;
      } else {
        rows[static_cast<size_t>(phase.band)] += 1;
      }
    }
    EXPECT_EQ(schedule.of_round.products, products);
    EXPECT_EQ(schedule.of_round.sums, sums);
    EXPECT_EQ(
        std::vector<uint32_t>(std::begin(schedule.of_round.rows), std::end(schedule.of_round.rows)),
        rows);
    const auto passes = static_cast<uint32_t>(kind.draft_passes);
    const auto bands = static_cast<uint32_t>(kind.num_bands);
    // The layers' sums, embeddings, features; a drafter's pass has the first band's rows.
    EXPECT_EQ(rows[0], 2 * (num_layers + passes * num_drafter_layers) + 2 + passes);
    EXPECT_EQ(rows[1], bands > 1 ? 2 * num_layers + 2 : 0);
    EXPECT_EQ(sums, 2 * (bands * num_layers + passes * num_drafter_layers));
    EXPECT_EQ(schedule.of_round.moe_layers, static_cast<uint32_t>(num_moe));
  }
}

}  // namespace
}  // namespace ultraspeed::worker::cuda
