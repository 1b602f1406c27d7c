#include "worker/speculation.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/check.h"

namespace ultraspeed::worker {
namespace {

constexpr double kPriorWeight = 2.0;  // draft tokens

// Of a block of a sequence: 1 + a + a^2 + .. + a^(block-1)
double ExpectedTokens(double acceptance, int block) {
  return (1.0 - std::pow(acceptance, block)) / (1.0 - acceptance);
}

// Of which so many are verified.
double ExpectedRows(double acceptance, int block, const DraftCost& cost) {
  const double reached = ExpectedTokens(acceptance, block);
  return reached + cost.unreached * (block - reached);
}

double TokensPerCost(const std::vector<Drafting>& sequences, const std::vector<RowShare>& division,
                     int block_max, const DraftCost& cost) {
  int places = 0, num_drafting = 0;
  double tokens = 0, rows = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const RowShare& share = division[i];
    places += share.rows();
    if (share.looked_up > 0) {
      tokens += ExpectedTokens(sequences[i].looked_up.acceptance, share.rows());
      rows += share.rows();
      continue;
    }
    num_drafting += share.block > 1;
    tokens += ExpectedTokens(sequences[i].acceptance, share.block);
    rows += ExpectedRows(sequences[i].acceptance, share.block, cost);
  }
  const int blocks = (places + block_max - 1) / block_max;
  return tokens /
         (1.0 + cost.fixed * num_drafting + cost.row * (rows - 1) + cost.block * (blocks - 1));
}

}  // namespace

void SpeculationState::Record(int num_drafted, int num_accepted) {
  KERNELS_CHECK(num_accepted, >=, 0);
  KERNELS_CHECK(num_accepted, <=, num_drafted);
  accepted_ = accepted_ * fade_ + num_accepted;
  tried_ = tried_ * fade_ + std::min(num_accepted + 1, num_drafted);
}

double SpeculationState::acceptance() const {
  return (accepted_ + prior_ * kPriorWeight) / (tried_ + kPriorWeight);
}

DraftCost DraftCosts::At(int64_t tokens) const {
  constexpr double kReach = 4;  // what is measured is not exact
  if (many.tokens <= few.tokens) return few.cost;
  const double place = std::clamp(
      static_cast<double>(tokens - few.tokens) / (many.tokens - few.tokens), 0.0, kReach);
  // Nothing is faster behind more tokens.
  const auto seconds = [&](double at_few, double at_many) {
    return at_few + place * std::max(0.0, at_many - at_few);
  };
  const auto of = [&](double DraftCost::*part) {
    return seconds(few.cost.*part * few.plain_seconds, many.cost.*part * many.plain_seconds);
  };
  const double plain = seconds(few.plain_seconds, many.plain_seconds);
  return {.fixed = of(&DraftCost::fixed) / plain,
          .row = of(&DraftCost::row) / plain,
          .block = of(&DraftCost::block) / plain,
          .unreached = few.cost.unreached};
}

DraftCost InCompany(const DraftCost& cost, int num_sequences) {
  KERNELS_CHECK(num_sequences, >=, 1);
  const double share = (1.0 + cost.row * (num_sequences - 1)) / num_sequences;
  return {.fixed = cost.fixed / share,
          .row = cost.row / share,
          .block = 0,
          .unreached = cost.unreached};
}

int ChooseBlock(double acceptance, int block_max, const DraftCost& cost) {
  KERNELS_CHECK(block_max, >=, 1);
  int best_block = 1;
  double best_rate = 1.0;
  const auto consider = [&](int block) {
    const double rate =
        TokensPerCost({{.acceptance = acceptance}}, {{.block = block}}, block, cost);
    if (rate <= best_rate) return;
    best_rate = rate;
    best_block = block;
  };
  for (int block = 2; block < block_max; block *= 2) consider(block);
  if (block_max > 1) consider(block_max);
  return best_block;
}

int ChooseLookedUp(const Drafting& sequence, int block, int num_max, const DraftCost& cost) {
  const auto rate = [&](const RowShare& share) {
    return TokensPerCost({sequence}, {share}, share.rows(), cost);
  };
  int best = 0;
  double best_rate = rate({.block = block});
  for (int count = 1; count <= std::min(num_max, sequence.looked_up.num_drafts); ++count) {
    const double rate_of_count = rate({.block = block, .looked_up = count});
    if (rate_of_count <= best_rate) continue;
    best_rate = rate_of_count;
    best = count;
  }
  return best;
}

std::vector<RowShare> DivideRows(const std::vector<Drafting>& sequences, const RowBounds& bounds,
                                 const DraftCost& cost) {
  const int count = static_cast<int>(sequences.size());
  const DraftCost in_company = InCompany(cost, count);
  std::vector<RowShare> best;
  double best_rate = 0;
  for (int num_blocks = 1; num_blocks <= std::min(bounds.blocks_max, count); ++num_blocks) {
    std::vector<RowShare> division;
    int rows_left = std::min(num_blocks * bounds.block_max, bounds.rows_max);
    for (int i = 0; i < count; ++i) {
      const Drafting& sequence = sequences[static_cast<size_t>(i)];
      const int rows = std::min(sequence.bound, NextShare(rows_left, count - i));
      const int looked_up_max =
          count > 1 ? std::min(rows, bounds.block_max) - 1
                    : std::min({bounds.looked_up_max, sequence.bound - 1, bounds.rows_max - 1});
      RowShare share = {
          .block = ChooseBlock(sequence.acceptance, std::min(rows, bounds.block_max), in_company)};
      share.looked_up = ChooseLookedUp(sequence, share.block, looked_up_max, in_company);
      division.push_back(share);
      rows_left -= share.rows();
    }
    const double rate = TokensPerCost(sequences, division, bounds.block_max, cost);
    if (rate <= best_rate) continue;
    best_rate = rate;
    best = std::move(division);
  }
  return best;
}

double ReachMin(const std::vector<Drafting>& sequences, const std::vector<RowShare>& division,
                int block_max, const DraftCost& cost) {
  KERNELS_CHECK(division.size(), ==, sequences.size());
  KERNELS_CHECK(block_max, >=, 1);
  return cost.row * TokensPerCost(sequences, division, block_max, cost);
}

void AcceptanceTotals::Record(const SequenceResult& result) {
  if (result.num_drafted == 0) return;
  ++rounds;
  Drafts& drafts = result.took_own ? of_text : of_drafter;
  drafts.verified += result.num_drafted;
  drafts.accepted += result.num_accepted;
  for (int i = 0; i < result.num_accepted; ++i) ++accepted_at[i];
}

}  // namespace ultraspeed::worker
