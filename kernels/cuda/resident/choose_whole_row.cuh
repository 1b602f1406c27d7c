// Choices that need whole rows: top-k and top-p, log-probabilities. Three phases between a head and
// who takes the choice: tally, sift, draw (sampling_filter.cuh has their arithmetic).
//
// The thread blocks are dealt to the rows, each takes a slice of its row; the blocks of a row meet
// in its RowTally. With filters the head publishes the largest logits instead of draws, and sift
// and draw put the choice in their place. With several ranks every rank does the same for all rows,
// over the whole vocabulary: it reads the others' logits in their memory, where they stay until
// this rank has taken part in later sums. Bytes: 4 V per row and pass, from L2 or from peers.
#pragma once

#include "kernels/cuda/resident/attend.cuh"
#include "kernels/cuda/resident/choose.cuh"

namespace ultraspeed::kernels::cuda::resident {

struct Consumers {
  static __device__ int Thread() { return resident::Thread(); }
  static constexpr __device__ int NumThreads() { return kConsumerThreads; }
  static __device__ void Sync() { NamedBarrier<kConsumerBarrier, kConsumerThreads>(); }
};

// In the staging area, where it stays from tally to draw: no product comes in between.
struct WholeRowScratch {
  static constexpr int kAhead = 8;
  FilterHistogram histogram;
  float ahead[kAhead][kConsumerThreads];  // logits on their way through a thread
  float floats[kConsumerWarps];
  FilterScratch filter;
  Decided decided;           // of the block's row
  RowChoice best[kRowsMax];  // of the head, of all blocks and ranks
};
static_assert(sizeof(WholeRowScratch) <= kStagingBytes);

__device__ __forceinline__ WholeRowScratch& ScratchOf(const Block& block) {
  return *reinterpret_cast<WholeRowScratch*>(block.shared().staging);
}

// The rows that are chosen for, and the block's slice of one of them.
struct RowPart {
  int first_row, num_rows;
  int row;
  int slice, num_slices;
  int begin, end;  // tokens
  RowPlace place;
};
__device__ __forceinline__ RowPart PartOf(const Block& block, int draft_of) {
  const Program& program = block.program();
  const bool is_draft = draft_of != kOfTarget;
  RowPart part;
  part.first_row = is_draft ? 1 : 0;
  part.num_rows = is_draft ? program.sequences[draft_of].block - 1 : program.num_rows;
  const int which = block.index % part.num_rows;
  part.row = part.first_row + which;
  part.slice = block.index / part.num_rows;
  part.num_slices = (block.num_blocks - which + part.num_rows - 1) / part.num_rows;
  const int width = (program.whole_row.vocabulary_used + part.num_slices - 1) / part.num_slices;
  part.begin = part.slice * width;
  part.end = min(part.begin + width, program.whole_row.vocabulary_used);
  part.place = PlaceOf(block, draft_of, part.row);
  return part;
}

__device__ __forceinline__ const SamplingSpec& SamplingOf(const Program& program,
                                                          const RowPart& part) {
  return program.sequences[part.place.sequence].sampling;
}

// Where a row's undecided tokens are listed.
__device__ __forceinline__ uint64_t* UndecidedOf(const Program& program, int row) {
  return program.whole_row.undecided +
         row * (static_cast<int64_t>(program.vocabulary) * program.collective.num_ranks);
}

// Logits of a row in the memory of the ranks that have them.
class RowLogits {
 public:
  __device__ __forceinline__ RowLogits(const Block& block, int row) : block_(block), row_(row) {}

  // As choices see it.
  __device__ __forceinline__ float At(int32_t token) const {
    const Program& program = block_.program();
    const int rank = token / program.vocabulary;
    const float* const place = program.collective.logits[rank] +
                               static_cast<int64_t>(row_) * program.vocabulary +
                               (token - rank * program.vocabulary);
    float x;
    asm volatile("ld.relaxed.sys.global.f32 %0, [%1];" : "=f"(x) : "l"(place) : "memory");
    return x != x || token == program.banned_token ? kMinusInfinity : x;
  }

  // Calls body(token, logit) for the tokens of [begin, end), which the first kThreads threads of
  // the consumers take in turn. A thread asks for several logits before it looks at any.
  template <int kThreads, typename Body>
  __device__ __forceinline__ void ForEach(int begin, int end, Body body) const {
    constexpr int kAhead = WholeRowScratch::kAhead;
    const int thread = Thread();
    if (thread >= kThreads) return;
    float* const ahead = ScratchOf(block_).ahead[0] + thread;
#pragma unroll 1
    for (int first = begin + thread; first < end; first += kAhead * kThreads) {
      float logits[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) logits[i] = At(min(first + i * kThreads, end - 1));
#pragma unroll
      for (int i = 0; i < kAhead; ++i) ahead[i * kConsumerThreads] = logits[i];
#pragma unroll 1
      for (int i = 0, token = first; i < kAhead && token < end; ++i, token += kThreads) {
        body(token, ahead[i * kConsumerThreads]);
      }
    }
  }

 private:
  const Block& block_;
  const int row_;
};

// The head's best of every row, which says that the other ranks' logits are there too.
__device__ __forceinline__ void FindBest(const Block& block, const RowPart& part, int draft_of,
                                         WholeRowScratch& scratch) {
  const bool has_ranks = block.program().collective.num_ranks > 1;
  const int lane = Thread() % kWarpLanes;
#pragma unroll 1
  for (int row = part.first_row + Thread() / kWarpLanes; row < part.first_row + part.num_rows;
       row += kConsumerWarps) {
    RowChoice best = BestOfBlocks(block, draft_of, row, lane);
    if (has_ranks) {
      __threadfence_system();  // this rank's logits come before its word, the others' after theirs
      best = BestOfRanks(block, draft_of, row, lane, best);
      __threadfence_system();
    }
    if (lane == 0) scratch.best[row] = best;
  }
  Consumers::Sync();
}

// The largest logit of the block's row, over temperature; -infinity: nothing can be chosen.
__device__ __forceinline__ float LargestScaled(const Block& block, const RowPart& part) {
  const float largest = ScratchOf(block).best[part.row].value;
  return largest == kMinusInfinity
             ? kMinusInfinity
             : __fdiv_rn(largest, SamplingOf(block.program(), part).temperature);
}

// Whether log-probabilities of the head's choices are wanted: of the target's for the host, of
// drafts to decide which of them are verified.
__device__ __forceinline__ bool WantsLogprobs(const Program& program, int draft_of) {
  return draft_of == kOfTarget ? program.whole_row.wants_logprobs : program.weighs_drafts;
}

// Of all rows, dealt over the blocks.
__device__ __forceinline__ void SumSlices(const Block& block, const RowPart& part,
                                          WholeRowScratch& scratch) {
  const Program& program = block.program();
  const int width = SliceWidth(program.whole_row.vocabulary_used);
#pragma unroll 1
  for (int unit = block.index; unit < part.num_rows * kSlices; unit += block.num_blocks) {
    const int row = part.first_row + unit / kSlices;
    const RowLogits logits(block, row);
    const int begin = unit % kSlices * width;
    const int end = min(begin + width, program.whole_row.vocabulary_used);
    SliceSum of_slice = {kMinusInfinity, 0.0f};
    logits.ForEach<kConsumerThreads>(
        begin, end, [&](int /*token*/, float logit) { of_slice.max = fmaxf(of_slice.max, logit); });
    of_slice.max = GroupReduce(Consumers(), of_slice.max, LargerFloat(), scratch.floats);
    if (of_slice.max > kMinusInfinity) {
      of_slice.sum = SumOfExponentials(
          Consumers(), [&](auto body) { logits.ForEach<kSliceThreads>(begin, end, body); },
          of_slice.max, scratch.floats);
    }
    if (Thread() == 0) program.whole_row.slice_sums[row * kSlices + unit % kSlices] = of_slice;
  }
}

static __device__ __noinline__ void Tally(Block block, int draft_of) {
  const WholeRow& whole_row = block.program().whole_row;
  WholeRowScratch& scratch = ScratchOf(block);
  const RowPart part = PartOf(block, draft_of);
  FindBest(block, part, draft_of, scratch);
  if (whole_row.filters) {
    const float max = LargestScaled(block, part);
    if (max > kMinusInfinity) {
      const RowLogits logits(block, part.row);
      AddToHistogram(
          Consumers(),
          [&](auto body) { logits.ForEach<kConsumerThreads>(part.begin, part.end, body); },
          SamplingOf(block.program(), part).temperature, max, scratch.histogram,
          whole_row.tallies[part.row].histogram);
    }
  }
  if (WantsLogprobs(block.program(), draft_of)) SumSlices(block, part, scratch);
}

// The best of the block's slice among the tokens that are kept for certain.
__device__ __forceinline__ RowChoice SiftPart(const Block& block, const RowPart& part, float max,
                                              WholeRowScratch& scratch) {
  const Program& program = block.program();
  RowTally& tally = program.whole_row.tallies[part.row];
  const auto* const from = reinterpret_cast<const uint4*>(&tally.histogram);
  auto* const to = reinterpret_cast<uint4*>(&scratch.histogram);
  constexpr int kPieces = sizeof(FilterHistogram) / sizeof(uint4);
  static_assert(kPieces * sizeof(uint4) == sizeof(FilterHistogram));
  for (int i = Thread(); i < kPieces; i += kConsumerThreads) to[i] = __ldcg(from + i);
  Consumers::Sync();
  Decided decided;
  const UndecidedBins bins =
      NarrowDown(Consumers(), SamplingOf(program, part), program.whole_row.vocabulary_used,
                 scratch.histogram, scratch.filter, decided);
  if (Thread() == 0) scratch.decided = decided;
  const RowLogits logits(block, part.row);
  const Candidate best = Sift(
      Consumers(), [&](auto body) { logits.ForEach<kConsumerThreads>(part.begin, part.end, body); },
      SamplingOf(program, part), part.place.position, max, bins, UndecidedOf(program, part.row),
      &tally.num_undecided, scratch.filter);
  return {best.value, best.token};
}

// Every block takes back what its head published and puts what ChosenToken is to find there.
static __device__ __noinline__ void SiftRows(Block block, int draft_of) {
  const Program& program = block.program();
  WholeRowScratch& scratch = ScratchOf(block);
  const RowPart part = PartOf(block, draft_of);
  RowChoice kept = {kMinusInfinity, kNoToken};
  if (program.whole_row.filters) {
    const float max = LargestScaled(block, part);
    if (max > kMinusInfinity) kept = SiftPart(block, part, max, scratch);
  }
  const int row = Thread();
  if (row < part.first_row || row >= part.first_row + part.num_rows) return;
  RowChoice choice = {kMinusInfinity, kNoToken};
  if (!program.whole_row.filters) {
    choice = scratch.best[row];
  } else if (row == part.row) {
    choice = kept;
  }
  ChoicesOf(block, draft_of, row)[block.index] = choice;
}

// The choice of the block's row. All consumers get it.
__device__ __forceinline__ RowChoice DrawRow(const Block& block, const RowPart& part, int draft_of,
                                             WholeRowScratch& scratch) {
  const Program& program = block.program();
  const float max = LargestScaled(block, part);
  if (max == kMinusInfinity) return {kMinusInfinity, kNoToken};
  const RowChoice certain = BestOfBlocks(block, draft_of, part.row, Thread() % kWarpLanes);
  RowTally& tally = program.whole_row.tallies[part.row];
  const uint64_t* const ranks = UndecidedOf(program, part.row);
  const Candidate best = DrawFiltered(
      Consumers(), SamplingOf(program, part), part.place.position,
      program.whole_row.vocabulary_used, max, scratch.decided,
      [ranks](int i) { return __ldcg(ranks + i); }, __ldcg(&tally.num_undecided),
      {certain.value, certain.token}, scratch.histogram.masses, scratch.filter);
  if (Thread() == 0) {
    ChoicesOf(block, draft_of, part.row)[block.index] = {best.value, best.token};
    tally.num_undecided = 0;
  }
  return {best.value, best.token};
}

// By the first block of each row, which has seen its whole tally; all of a row leave it empty.
static __device__ __noinline__ void DrawRows(Block block, int draft_of) {
  const Program& program = block.program();
  const WholeRow& whole_row = program.whole_row;
  WholeRowScratch& scratch = ScratchOf(block);
  const RowPart part = PartOf(block, draft_of);
  RowChoice choice = scratch.best[part.row];
  if (whole_row.filters) {
    FilterHistogram& histogram = whole_row.tallies[part.row].histogram;
    for (int bin = part.slice * kConsumerThreads + Thread(); bin < kBins;
         bin += part.num_slices * kConsumerThreads) {
      histogram.counts[bin] = 0;
      histogram.masses[bin] = 0;
    }
    if (part.slice == 0) choice = DrawRow(block, part, draft_of, scratch);
  }
  if (!WantsLogprobs(program, draft_of) || part.slice != 0) return;
  const int thread = Thread();
  if (thread >= kWarpLanes) return;
  const auto raw =
      __ldcg(reinterpret_cast<const float2*>(whole_row.slice_sums) + part.row * kSlices + thread);
  const float max = WarpReduce(raw.x, LargerFloat());
  const float logit = RowLogits(block, part.row).At(TokenOrFirst(choice));
  const float logprob = LogProbabilityOfSlices(logit, max, [&](int slice) {
    return SliceSum{__shfl_sync(kAllLanes, raw.x, slice), __shfl_sync(kAllLanes, raw.y, slice)};
  });
  if (thread == 0) whole_row.logprobs[ChoiceRow(draft_of, part.row)] = logprob;
}

static __device__ __noinline__ void ChooseFromWholeRows(Block block) {
  const Phase& phase = block.PhaseOf(Role::kConsumer);
  if (Thread() == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
  Consumers::Sync();
  if (phase.kind == PhaseKind::kTally) {
    Tally(block, phase.draft_of);
  } else if (phase.kind == PhaseKind::kSift) {
    SiftRows(block, phase.draft_of);
  } else {
    DrawRows(block, phase.draft_of);
  }
  ArriveAsConsumers(block, phase);
}

}  // namespace ultraspeed::kernels::cuda::resident
