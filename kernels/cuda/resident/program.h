// The round of the resident engine as data: phases in order, every address and size in them.
//
// The host builds a Program once for a model (worker/cuda/resident_schedule.h) and hands it to the
// kernel with the state of its sequences; the device walks it, round after round, until the host or
// the end of one of them stops it. Nothing in a phase depends on what a round finds, except which
// experts it reads.
//
// Sequences share the rows of the target's pass. Each that drafts has a drafter's pass of its own
// before it: its block is as long there as the drafter was trained for, whatever is verified of it.
//
// A product multiplies eight rows, a band. Where a pass has more of them, every product is a phase
// for each band, one behind the other: the second finds its input there and waits for nobody.
//
// A phase waits until the phases it depends on have arrived at its counter, reads what they wrote,
// and arrives at its own. Tiles are row tiles (16 rows) of packed matrices (weight_layout.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/filter_histogram.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/resident/attention.h"
#include "kernels/cuda/weight_layout.h"

namespace ultraspeed::kernels::cuda::resident {

constexpr int kClusterBlocks =
    2;                          // thread blocks of a cluster; a product's columns are cut over them
constexpr int kPassSlabs = 48;  // of a product's columns that a cluster multiplies in one pass
constexpr int kNumCounters = 8;  // arrival counters, used in turn
constexpr int kRanksMax = 8;
constexpr int kSlotsMax = 64;  // (row, expert) choices of a band: kBandRows * K
constexpr int kExpertsMax = 384;
constexpr int kNumScores = kBandRows * kExpertsMax;  // of a band
constexpr int kExpertWords = kExpertsMax / 32;       // of a set of experts, a bit each
constexpr int kResultsMax = 64;                      // of the ring of finished rounds
constexpr int8_t kOfTarget = -1;                     // Phase::draft_of
constexpr int kSequencesMax = 8;                     // of a round, each with at least one row
constexpr int kDraftPassesMax = kSequencesMax;       // those that draft
constexpr int kChainWords = 5;                       // draft_chain.cuh
// Rows from which a token is chosen: the target's, then those of the drafter's passes.
constexpr int kChoiceRows = kRowsMax + kDraftPassesMax * kBandRows;
constexpr int ChoiceRow(int draft_of, int row) {
  return draft_of == kOfTarget ? row : kRowsMax + draft_of * kBandRows + row;
}

enum class PhaseKind : uint8_t {
  kEmbed,    // anchor and masks, or anchors and drafts, become the residual stream
  kProduct,  // matrix times rows
  kMoeUp,    // norm, router, top-k; gate and up of the chosen experts
  kMoeDown,  // down of the chosen experts, weighted sum, residual
  kAttend,
  kCombine,  // folds the segments of a full layer's attention
  kChain,    // chooses a block's drafts, each behind the one before it (draft_chain.cuh)
  kTally,    // of a choice that needs whole rows (WholeRow): counts how probable its tokens are
  kSift,     // keeps tokens for certain, lists those that need a closer look
  kDraw,     // takes that look; the choice, its log-probability
  kCommit,   // chooses, accepts, tells the host, decides whether there is another round
  kAppend,   // the drafter's context keys and values of the committed rows
};

enum class InputKind : uint8_t {
  kNorm,    // fp32 residual stream, RMS norm on the way in
  kBf16,    // bf16 rows
  kSwiGlu,  // fp32 [gate | up], their product on the way in
};

enum class OutputKind : uint8_t {
  kStore,     // fp32 rows
  kResidual,  // summed over ranks, added to the residual stream, tapped; every tile arrives
  kFeatures,  // becomes a residual stream of its own
  kLogits,    // fp32 rows, and the best token of each
};

// Which cluster makes a tile, and which of its blocks finishes it.
enum class TileOrder : uint8_t {
  kDealt,  // round robin over clusters, then over the cluster's blocks
  kOwned,  // a block finishes contiguous chunks of the router's tiles: its part of the residual
};

// Phases of some kinds, counted.
struct Tally {
  uint32_t products = 0;          // with work for finishers
  uint32_t sums = 0;              // over ranks
  uint32_t moe_layers = 0;        // that are over
  uint32_t rows[kBandsMax] = {};  // that write the residual stream of a band
};

struct alignas(16) Phase {
  PhaseKind kind = PhaseKind::kProduct;
  WeightFormat format = WeightFormat::kBf16;
  InputKind input = InputKind::kNorm;
  OutputKind output = OutputKind::kStore;
  TileOrder order = TileOrder::kDealt;
  uint8_t label = 0;  // PhaseLabel, for tables and traces

  int index = 0;  // in the program
  int band = 0;   // whose rows a product multiplies
  Tally before;   // phases of this round that come before it

  // Arrivals are counted over rounds: a wait is over when counter `wait_counter` has reached
  // round * totals + wait_target. -1 = waits for nothing, arrives nowhere.
  int wait_counter = -1;
  uint32_t wait_target = 0;
  int arrive_counter = -1;
  int inner_counter = -1;  // kMoeUp: everybody has read the rows
  uint32_t inner_target = 0;

  // kProduct, and the products of the MoE phases.
  const uint8_t* weights = nullptr;
  int num_rows = 0, num_tiles = 0, num_slabs = 0;
  int segment_blocks = 0;   // blocks of two slabs whose partials are added first (weight_layout.h)
  float4* carry = nullptr;  // [tiles, 2, 32] sums between passes; more than 24 blocks only

  // Input rows.
  const void* x = nullptr;             // not kNorm, which reads RowMail; kChain: ChainTask
  int x_stride = 0;                    // elements; kSwiGlu: gate, then up, each half of it
  const float* norm_weight = nullptr;  // kNorm: [H]
  float epsilon = 0;

  // Output rows; kChain: the logits that it reads.
  float* out = nullptr;
  int out_stride = 0;
  int num_copies =
      1;  // kFeatures of a sharded matrix that stands alone: each rank's rows are these
  float* residual = nullptr;  // kResidual, kEmbed: [kRowsMax, H], for who writes it next
  bf16* tap = nullptr;        // of the first column; null = not tapped
  int tap_stride = 0;

  int8_t draft_of = kOfTarget;  // else the sequence whose drafter's pass it is part of

  // MoE.
  const float* router = nullptr;       // [E, H] by PackRouter
  const float* router_bias = nullptr;  // [E]
  int num_experts = 0, experts_per_token = 0, ffn_width = 0;
  size_t expert_bytes = 0;  // from one expert's matrix to the next

  AttentionTask attention = {};
  int attention_units_max = 0;

  // kAppend: one AttentionTask's worth of cache for each of the drafter's layers.
  const AttentionTask* append_tasks = nullptr;
  int num_append_tasks = 0;
};
static_assert(sizeof(Phase) <= 512);

// The drafter's Markov head, as ops.h says of MarkovHead; tiles of packed BF16 matrices.
struct ChainTask {
  int rank = 0;
  const bf16* previous = nullptr;
  const uint8_t* next = nullptr;           // of the whole model's vocabulary
  const uint8_t* gate_previous = nullptr;  // null: no gate
  const float* gate_bias = nullptr;
  const float* gates = nullptr;  // [kBandRows, R] of the drafter's pass
  // [kDraftPassesMax, kBandRows, kChainWords, blocks] what blocks tell each other; zeros at first.
  uint2* words = nullptr;
};
constexpr int kMarkovRankMax = 256;
constexpr int kChainTokensMax = 4096;         // of a thread block
constexpr uint32_t kChainCandidatesMax = 16;  // of a row, until one is taken that is not kept
constexpr size_t NumChainWords(int num_blocks) {
  return static_cast<size_t>(kDraftPassesMax) * kBandRows * kChainWords * num_blocks;
}

// A candidate of a row's choice; larger values win, then lower tokens.
struct RowChoice {
  float value;
  int32_t token;
};

// Of a row's logits: the sum of exp(logit - max).
struct RowMass {
  float max;
  float sum;
};
constexpr int kMassesPerBlock = 3;  // one of each finisher warp

// What top-k and top-p find out about a row. Zero between rounds.
struct RowTally {
  FilterHistogram histogram;
  int32_t num_undecided;
};

// Choices that need more than the best of each row: among the tokens that top-k and top-p keep, or
// with a log-probability. Between a head and who chooses from it lie kTally, kSift and kDraw then.
struct WholeRow {
  bool in_use = false;
  bool filters = false;
  bool wants_logprobs = false;
  int vocabulary_used = 0;         // tokens that may be chosen, of all ranks
  RowTally* tallies = nullptr;     // [kRowsMax]
  uint64_t* undecided = nullptr;   // [kRowsMax, V of all ranks] ranks (sampling_filter.cuh)
  SliceSum* slice_sums = nullptr;  // [kRowsMax, kSlices], if log-probabilities are wanted
  float* logprobs = nullptr;       // [kChoiceRows] of the choices, likewise
};

// What the target's rows may choose, if some are held to something. The host makes a round's masks
// of its drafts while the target runs; its head waits for them. A round for which none come is void
// and the last: rank 0 decides that, and no head goes on waiting.
struct ChoiceMasks {
  const uint32_t* rows = nullptr;  // [kRowsMax, row_words] bits of tokens; null: no row is held
  int row_words = 0;
};
constexpr uint32_t kMasksOfAllRounds = ~0u;  // nobody waits any longer

// One sequence's part of a round.
struct RoundSequence {
  int first_row = 0;  // of the target's pass
  int block = 1;      // its rows: anchor and drafts
  int64_t position = 0;
  int64_t position_end = 0;  // no row may lie at or past this
  int32_t slot = 0;
  bool is_given = false;  // the host has given the drafts; for a launch of one round
  const int32_t* pages = nullptr;
  SamplingSpec sampling = {};
};

constexpr uint32_t kVoidMark = ~0u;  // of a round that gave nothing

// What one round gave, in pinned host memory.
struct RoundRecord {
  int32_t tokens[kRowsMax];             // chosen after the target's rows
  float logprobs[kRowsMax];             // likewise, if wanted
  int32_t num_verified[kSequencesMax];  // rows of each sequence: its anchor and likely drafts
  int32_t num_tokens[kSequencesMax];    // of each sequence: accepted drafts and one more
  int32_t num_experts;                  // read, of all layers together
  uint32_t mark;                        // round + 1, written last; kVoidMark
  // Of rounds with masks, told before: the target's rows, anchors and drafts; round + 1.
  int32_t rows[kRowsMax];
  uint32_t rows_mark;
  uint64_t end_ns;  // by the GPU's clock
};

// Written by the host while the kernel runs, in pinned memory.
struct HostControl {
  uint32_t round_limit;  // rounds before this one may run
  uint32_t stop;
  float log_reach_min;  // of the rounds to come, as Program's
};

// Whether the next round runs, and how.
struct Decision {
  uint32_t runs_on;
  float log_reach_min;
};

// Where every block stood when a wait lasted too long, in pinned memory.
struct StuckReport {
  uint32_t is_stuck;
  struct Place {
    int32_t phase[3];  // of the producer, the consumers, the finishers
    int32_t waits_for;
  } places[256];
};

// What one rank tells another besides sums, in the memory of the one that is told. Zeroed at first.
struct RankMail {
  // The best token of each row among the rank's part of the vocabulary, of the target and of each
  // drafter's pass (choose.cuh). A round writes each word once, with the round's mark in it.
  uint2 choices[kChoiceRows];  // by ChoiceRow
  uint2 masses[kChoiceRows];   // of drafts: logarithm of the mass of the part, mark
  uint2 chain[kDraftPassesMax * kBandRows][kChainWords];  // of drafts that follow each other
  uint2 decision;  // of rank 0: 2 * (round + 1), and 1 if that round runs; its log_reach_min
  // Of rank 0: the masks of the rounds before this one are there. Written by the host, or by rank 0
  // when it waits for that no longer.
  uint32_t num_masked;
};

// The ranks of a node. Sums: a block pushes its part of a tile to every rank's inbox and adds what
// arrives in its own, in rank order. The data is its own flag: an inbox word that holds kNotArrived
// has not arrived. A rank that stands alone has all inboxes, and the mail, itself; a single one has
// no inbox.
struct Collective {
  int num_ranks = 1;
  int rank = 0;
  uint2* push[kRanksMax] = {};  // where this rank's data lies in each rank's inbox
  uint2* inbox = nullptr;       // [3, ranks, tiles, 32]
  size_t inbox_rank_words = 0;  // tiles * 32
  RankMail* mail_push[kRanksMax] = {};
  RankMail* mail = nullptr;  // [ranks]
  // Each rank's part of the vocabulary, [V of a rank, H]; null: there is no such rank.
  const bf16* embedding[kRanksMax] = {};
  const float* logits[kRanksMax] = {};  // likewise, [kRowsMax, V of a rank] of its last head
};

// The residual stream as all blocks read it: rounded to bf16, with the sums of squares of its
// tiles. Two of each take turns, write by write; who writes a tile of one empties it in the other,
// which everybody has read by then, since between two writes lies an arrival of all blocks that
// have read. The data is its own flag: who reads it polls it until nothing is kNotArrived
// (device/flagged_words.cuh).
struct RowMail {
  uint32_t* rows = nullptr;     // [2, kRowsMax, H / 2] pairs of bf16
  uint32_t* squares = nullptr;  // [2, kRowsMax, H / 16] fp32
};

// What the MoE phases tell each other. Two of each take turns, layer by layer, and a layer empties
// the other one. As RowMail, but a priority has not arrived while it is 0.
struct MoeMail {
  // [2, kBandsMax, E, chunks, kBandRows] fp32 sums of the router's product
  uint32_t* partials = nullptr;
  size_t num_partials = 0;         // words of one band
  uint32_t* scores = nullptr;      // [2, kBandsMax, kBandRows, kExpertsMax] fp32
  uint32_t* priorities = nullptr;  // likewise, score + bias as a number: the larger is chosen
  // [2, kBandsMax, slots, F / 2] pairs of bf16 with kInputGain
  uint32_t* activations = nullptr;
  size_t num_activations = 0;  // words of one band
};

constexpr size_t NumRouterPartials(int num_experts, int hidden) {
  return static_cast<size_t>(num_experts) * kBandRows * NumRouterChunks(NumRowTiles(hidden));
}

struct Program {
  const Phase* phases = nullptr;
  int num_phases = 0;  // at least 2
  Tally of_round;
  uint32_t* counters = nullptr;        // [kNumCounters], 32 words apart
  uint32_t totals[kNumCounters] = {};  // arrivals of a round

  int hidden = 0;
  int vocabulary = 0;   // of a rank
  int first_token = 0;  // of this rank's part
  int token_end = 0;    // past its last that may be chosen
  int32_t banned_token = -1;
  const bf16* mask_embedding = nullptr;  // [H]
  // [kChoiceRows, blocks]
  RowChoice* choices = nullptr;
  RowMass* masses = nullptr;     // likewise, a few of each block, of drafts that are weighed
  Decision* decision = nullptr;  // made by one block:
  int decision_counter = 0;      // its arrival, as in Phase
  uint32_t decision_target = 0;
  Collective collective;
  RowMail rows;
  MoeMail moe;
  WholeRow whole_row;
  ChoiceMasks masks;

  // Benchmarks: that many experts a layer, spread evenly, instead of the router's choice; 0 = off.
  int forced_distinct_experts = 0;

  HostControl* control = nullptr;
  RoundRecord* results = nullptr;  // [kResultsMax]
  uint32_t* abort_word = nullptr;  // device
  StuckReport* stuck = nullptr;
  uint64_t wait_ns_max = 0;
  uint64_t* trace = nullptr;  // [blocks, phases, kTraceStamps] of the last round; may be null

  // The sequences; those that draft come first.
  int num_sequences = 1;
  int num_rows = 1;    // of the target's pass, all sequences'
  int num_bands = 1;   // that hold them
  int draft_rows = 0;  // of a drafter's pass: anchor and masks, at least a block
  RoundSequence sequences[kSequencesMax];
  uint8_t sequence_of[kRowsMax] = {};  // of a row of the target's pass
  int32_t tokens[kRowsMax] = {};       // of the first round: anchors, and drafts that are given
  // Whether a draft's own probability decides if it is verified: it is when those of the drafts up
  // to it, multiplied, are at least exp(log_reach_min); given ones are. What is not verified
  // chooses no experts, attends to nothing and is never accepted; its row goes through everything
  // else.
  float log_reach_min = 0;  // of the first round
  bool weighs_drafts = false;
  bool chains_drafts = false;       // they are chosen in kChain, not where they are taken
  bool holds_position = false;      // benchmarks: every round runs at the same place
  int8_t forced_verified_rows = 0;  // benchmarks: of each sequence that drafts; 0 = off
};

// Stamps of a block's phase in the trace, ns of the GPU's global clock.
enum TraceStamp { kTraceBegin, kTraceInputReady, kTraceWorkDone, kTraceFinished, kTraceStamps };

// Blocks that fit on the device at once, a multiple of kClusterBlocks; 0: this device cannot run
// the engine.
int NumBlocks();
// Enqueues what a launch begins with: counters, decision, abort word, tallies and what ranks tell
// each other zeroed, inbox and mail emptied. A rank with peers is launched when
// all of them have passed this.
void Prepare(const Program& program, cudaStream_t stream);
void Launch(const Program& program, cudaStream_t stream);

}  // namespace ultraspeed::kernels::cuda::resident
