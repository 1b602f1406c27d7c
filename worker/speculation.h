// How often drafts are accepted, and how many rows the next round of a sequence should therefore
// draft. Pure.
//
// A draft token is accepted with a probability that is taken to be the same at every position of
// the block; it is estimated per sequence from the recent past, with old rounds fading. The block
// is the one with the most expected tokens per unit of cost. Which block is chosen changes the
// speed and never the text: every committed token is the target's own choice.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "worker/batch.h"

namespace ultraspeed::worker {

// Published acceptance of code, 6.3 tokens of 8, is about 0.9. Hopeful on purpose: drafting is
// tried before it is given up.
inline constexpr double kPriorAcceptance = 0.9;

// What a round keeps of the rounds before it, of one sequence: half of the weight lies in the last
// ten rounds; of all sequences: in the last 350.
inline constexpr double kFadeOfSequence = 0.93, kFadeOfAll = 0.998;

// Estimate of one sequence, or of all, which is what a new one begins with. Fades towards the
// prior, so who stopped drafting on hard text tries again later.
class SpeculationState {
 public:
  explicit SpeculationState(double prior = kPriorAcceptance, double fade = kFadeOfSequence)
      : prior_(prior), fade_(fade) {}
  // Of one round that drafted `num_drafted` tokens (0 = plain round), whether all were verified or
  // not, and kept the first `num_accepted`.
  void Record(int num_drafted, int num_accepted);
  // Probability that the next draft token is accepted, in (0, 1).
  double acceptance() const;

 private:
  double prior_, fade_;
  double accepted_ = 0;  // fading count of accepted draft tokens
  double tried_ = 0;  // fading count of draft tokens that were reached: the accepted ones and the
                      // first rejected one
};

// What a drafted block costs, in units of a round with one row: 1 + fixed + row * (verified rows -
// 1).
struct DraftCost {
  double fixed = 0;  // running the drafter at all
  double row = 0;    // one more verified row
  double block = 0;  // a round whose sequences have one more block of rows, besides its rows
  // Of a block's rows that turn out not to be reached, the share that is verified all the same.
  double unreached = 1;
};

// Where drafts are weighed (SequenceStep::reach_min): 0.12 to 0.3 of the bundled model's, from
// temperature 1 to greedy (docs/PERFORMANCE.md).
inline constexpr double kUnreachedOfWeighed = 0.25;

// One rank of eight of the served shape on an H200 (docs/PERFORMANCE.md): a plain round takes 3.58
// ms, the drafter 0.37, one more row of other experts 0.31, a second block 1.95. A machine that
// computes rather than reads has more: see calibration.h, which measures it.
inline constexpr DraftCost kServedShapeDraftCost = {
    .fixed = 0.10, .row = 0.086, .block = 0.54, .unreached = kUnreachedOfWeighed};

// What drafting costs by the length of the sequence: where rows are computed rather than read, each
// attends to all tokens before it. Between and beyond the two points where it is known, the time of
// a plain round, of a drafter and of a row is a straight line, up to four times their distance.
struct DraftCosts {
  struct Point {
    int64_t tokens = 0;        // of the sequence
    double plain_seconds = 1;  // of a round with one row
    DraftCost cost = {};
  };
  Point few, many;  // few.tokens <= many.tokens; equal: the cost is the same everywhere

  DraftCosts() = default;
  DraftCosts(const DraftCost& everywhere)  // NOLINT: a cost is one for all lengths
      : few{.tokens = 0, .plain_seconds = 1, .cost = everywhere}, many(few) {}
  DraftCosts(const Point& of_few, const Point& of_many) : few(of_few), many(of_many) {}

  DraftCost At(int64_t tokens) const;
};

// A cost for one of `num_sequences` in a round, in units of its share of their plain round: they
// share what a round costs anyhow, but nobody's draft.
DraftCost InCompany(const DraftCost& cost, int num_sequences);

// Rows for the next of `num_left` sequences that divide `rows_left`: an even share, rounded up, at
// least one.
constexpr int NextShare(int rows_left, int num_left) {
  return std::max(1, (rows_left + num_left - 1) / num_left);
}

// 1, 2, 4, 8 .. or block_max, whichever gives the most expected tokens per cost; at most block_max.
// REQUIRES: block_max >= 1.
int ChooseBlock(double acceptance, int block_max, const DraftCost& cost);

// Drafts that a sequence's own text proposes (lookup_drafter.h).
struct LookedUp {
  double acceptance = 0;
  int num_drafts = 0;
};
// A sequence of a round: how likely its drafts are, and its rows at most (1: it does not draft).
struct Drafting {
  double acceptance = 0;
  int bound = 1;
  LookedUp looked_up = {};
};
// What the sequences of a round may divide.
struct RowBounds {
  int block_max = 1;   // rows of a block, and of a sequence
  int blocks_max = 1;  // beyond the first only for more than one sequence
  int rows_max = 1;
  int looked_up_max = 0;  // drafts of a sequence that is alone, from its text
};
// A sequence's part of a round: an anchor and drafts, which a drafter makes or its text.
struct RowShare {
  int block = 1;      // rows if the drafter makes them
  int looked_up = 0;  // drafts from the text; 0: the drafter's

  int rows() const { return looked_up > 0 ? 1 + looked_up : block; }
};
// Rows for each of the sequences, which divide one block or, of those that there are, as many as
// give the most expected tokens per cost. Each has at least one.
// REQUIRES: from 1 to rows_max sequences; all bounds >= 1.
std::vector<RowShare> DivideRows(const std::vector<Drafting>& sequences, const RowBounds& bounds,
                                 const DraftCost& cost);

// How many drafts from its text a sequence should verify instead of a drafter's block of `block`
// rows, at most `num_max`: as many as give the most expected tokens per cost; 0: the block gives
// more.
int ChooseLookedUp(const Drafting& sequence, int block, int num_max, const DraftCost& cost);

// How likely to be reached a draft must be for its row to bring more tokens than the round, divided
// like that, brings for the same cost: cost.row times the round's expected tokens per cost.
// REQUIRES: a row at least for each sequence; block_max >= 1.
double ReachMin(const std::vector<Drafting>& sequences, const std::vector<RowShare>& division,
                int block_max, const DraftCost& cost);

// Counts since start, for metrics. Thread: the engine thread.
struct AcceptanceTotals {
  struct Drafts {
    int64_t verified = 0;
    int64_t accepted = 0;
  };
  int64_t rounds = 0;  // sequence rounds that verified drafts
  Drafts of_drafter, of_text;
  std::array<int64_t, kDraftBlockMax> accepted_at{};  // [position in the block - 1]

  void Record(const SequenceResult& result);
};

}  // namespace ultraspeed::worker
