#include "worker/speculation.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"

namespace ultraspeed::worker {
namespace {

constexpr double kFade = 0.93;  // per round: half of the weight lies in the last ten rounds
// Published acceptance of code, 6.3 tokens of 8, is about 0.9. Hopeful on purpose: drafting is
// tried before it is given up.
constexpr double kPriorAcceptance = 0.9;
constexpr double kPriorWeight = 2.0;  // draft tokens

}  // namespace

void SpeculationState::Record(int num_drafted, int num_accepted) {
  KERNELS_CHECK(num_accepted, >=, 0);
  KERNELS_CHECK(num_accepted, <=, num_drafted);
  accepted_ = accepted_ * kFade + num_accepted;
  tried_ = tried_ * kFade + std::min(num_accepted + 1, num_drafted);
}

double SpeculationState::acceptance() const {
  return (accepted_ + kPriorAcceptance * kPriorWeight) / (tried_ + kPriorWeight);
}

DraftCost InCompany(const DraftCost& cost, int num_sequences) {
  KERNELS_CHECK(num_sequences, >=, 1);
  const double share = (1.0 + cost.row * (num_sequences - 1)) / num_sequences;
  return {.fixed = cost.fixed / share, .row = cost.row / share};
}

int ChooseBlock(double acceptance, int block_max, const DraftCost& cost) {
  KERNELS_CHECK(block_max, >=, 1);
  int best_block = 1;
  double best_rate = 1.0;
  const auto consider = [&](int block) {
    // 1 + a + a^2 + .. + a^(block-1)
    const double tokens = (1.0 - std::pow(acceptance, block)) / (1.0 - acceptance);
    const double rate = tokens / (1.0 + cost.fixed + cost.row * (block - 1));
    if (rate <= best_rate) return;
    best_rate = rate;
    best_block = block;
  };
  for (int block = 2; block < block_max; block *= 2) consider(block);
  if (block_max > 1) consider(block_max);
  return best_block;
}

void AcceptanceTotals::Record(int num_drafted, int num_accepted) {
  if (num_drafted == 0) return;
  ++rounds;
  drafted += num_drafted;
  accepted += num_accepted;
  for (int i = 0; i < num_accepted; ++i) ++accepted_at[i];
}

}  // namespace ultraspeed::worker
