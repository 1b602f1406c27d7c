// How likely a draft is, by the drafter: its probability among all tokens, before temperature and
// filters. The drafter's head publishes sums of exp(logit), a few of each block; who takes the
// drafts adds them up, over all blocks and ranks. Where choices need whole rows, their phases have
// the log-probabilities (choose_whole_row.cuh).
#pragma once

#include "kernels/cuda/resident/choose.cuh"

namespace ultraspeed::kernels::cuda::resident {

// ---- Sums of exp(logit)

static_assert(kMassesPerBlock == kFinisherWarps);
__device__ __forceinline__ RowMass* MassesOf(const Block& block, int draft_of, int row) {
  return block.program().masses + ChoiceRow(draft_of, row) * (block.num_blocks * kMassesPerBlock);
}

constexpr RowMass kNoMass = {-3e38f, 0.0f};  // finite, so that two of them make no NaN

__device__ __forceinline__ RowMass Together(RowMass a, RowMass b) {
  const float max = fmaxf(a.max, b.max);
  return {max, a.sum * __expf(a.max - max) + b.sum * __expf(b.max - max)};
}
__device__ __forceinline__ RowMass TogetherOfLanes(RowMass mass, int mask) {
  return Together(mass, {__shfl_xor_sync(kAllLanes, mass.max, mask),
                         __shfl_xor_sync(kAllLanes, mass.sum, mask)});
}
// Of every `step`-th of [first, end), kAtOnce of which are requested before the first is looked at.
template <int kAtOnce, typename Load>
__device__ __forceinline__ RowMass TogetherOf(int first, int end, int step, Load load) {
  RowMass total = kNoMass;
#pragma unroll 1
  for (int begin = first; begin < end; begin += kAtOnce * step) {
    RowMass masses[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      masses[i] = begin + i * step < end ? load(begin + i * step) : kNoMass;
    float max = total.max;
#pragma unroll
    for (const RowMass& mass : masses) max = fmaxf(max, mass.max);
    total = {max, total.sum * __expf(total.max - max)};
#pragma unroll
    for (const RowMass& mass : masses) total.sum += mass.sum * __expf(mass.max - max);
  }
  return total;
}
__device__ __forceinline__ float LogOf(RowMass mass) { return mass.max + __logf(mass.sum); }

// Whether the choices of a pass's rows are drafts that are weighed, by what its head publishes.
__device__ __forceinline__ bool PublishesMass(const Block& block, int draft_of) {
  const Program& program = block.program();
  return draft_of != kOfTarget && program.weighs_drafts && !program.whole_row.in_use;
}

// ---- Written by the head, read by all

// Writes each finisher warp's mass of every row of a drafter's head, from the logits that the block
// has stored: what it would take to keep them on the way, in registers of all products, costs more.
// All finishers call it.
static __device__ __noinline__ void PublishMasses(Block block, int draft_of, const float* logits,
                                                  int stride, TileWalk walk) {
  constexpr int kParts = kFinisherThreads / kBandRows;  // of a row
  const Program& program = block.program();
  const int thread = Thread() - kFirstFinisherWarp * kWarpLanes;
  const int row = thread % kBandRows, warp = thread / kWarpLanes;
  const int count = walk.OwnedCount(block.rank) * kTileRows;
  logits += static_cast<int64_t>(row) * stride;
  // A dozen: of a rank of eight of the served shape, all.
  RowMass mass = TogetherOf<12>(thread / kBandRows, count, kParts, [&](int i) -> RowMass {
    const int column = walk.TileAt(block.rank, i / kTileRows) * kTileRows + i % kTileRows;
    const int32_t token = program.first_token + column;
    if (token >= program.token_end || token == program.banned_token) return kNoMass;
    const float logit = __ldcg(logits + column);
    return logit == logit ? RowMass{logit, 1.0f} : kNoMass;
  });
#pragma unroll
  for (int mask = kBandRows; mask < kWarpLanes; mask *= 2) mass = TogetherOfLanes(mass, mask);
  if (thread % kWarpLanes >= kBandRows) return;
  MassesOf(block, draft_of, row)[block.index * kMassesPerBlock + warp] = mass;
}

// The log-probability of the draft `choice`, which was chosen from row `row`, by one warp: the same
// in all blocks of all ranks, which decide by it.
__device__ __forceinline__ float DraftLogprob(const Block& block, int draft_of, int row, int lane,
                                              RowChoice choice) {
  const Program& program = block.program();
  const int which = ChoiceRow(draft_of, row);
  if (program.whole_row.in_use) return __ldcg(program.whole_row.logprobs + which);
  const auto* const masses = reinterpret_cast<const float2*>(MassesOf(block, draft_of, row));
  // Of an H200's 132 blocks, all.
  RowMass mass = TogetherOf<13>(lane, block.num_blocks * kMassesPerBlock, kWarpLanes, [&](int i) {
    const float2 raw = __ldcg(masses + i);
    return RowMass{raw.x, raw.y};
  });
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) mass = TogetherOfLanes(mass, mask);
  if (program.collective.num_ranks > 1) {
    const uint32_t mark = block.shared().state.round + 1;
    const uint2 word =
        TellRanks(block, &RankMail::masses, which, lane, {__float_as_uint(LogOf(mass)), mark},
                  [&](uint2 theirs) { return theirs.y == mark; });
    mass = lane < program.collective.num_ranks ? RowMass{__uint_as_float(word.x), 1.0f} : kNoMass;
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) mass = TogetherOfLanes(mass, mask);
  }
  float logit = choice.value;
  const RowPlace place = PlaceOf(block, draft_of, row);
  const SamplingSpec& sampling = program.sequences[place.sequence].sampling;
  if (sampling.temperature > 0.0f) {  // as BestOfRows made the value of it, but for rounding
    logit = (logit - PortableGumbelNoise(sampling.seed, place.position, TokenOrFirst(choice))) *
            sampling.temperature;
  }
  return logit - LogOf(mass);
}

}  // namespace ultraspeed::kernels::cuda::resident
