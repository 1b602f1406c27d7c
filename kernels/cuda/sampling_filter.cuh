// Top-k and top-p without sorting the vocabulary, and log-probabilities: the arithmetic that
// sampling.cu and the resident engine (resident/choose_whole_row.cuh) share.
//
// Tokens compete as one number each, their Rank: larger logits first, then lower ids. What a filter
// keeps is a prefix of the descending ranks, so a filter is one boundary rank. Three steps, each
// over any slices of a row: AddToHistogram counts tokens and probability by their distance from the
// largest logit; NarrowDown decides all bins but a few, and Sift lets the tokens that are kept for
// certain compete and lists the undecided; DrawFiltered finds the boundary among those.
// Probabilities are added as 40-bit fixed point: sums are exact, and additions in any order give
// the same bits.
//
// All threads of a group call the functions that take one (ThreadBlock's members with NumThreads
// constexpr), and get the result. `for_each(body)` calls body(token, logit) for the tokens of the
// thread's part of a slice, with -infinity for those that may not be chosen.
#pragma once

#include "kernels/cuda/device/reduce.cuh"
#include "kernels/cuda/filter_histogram.h"
#include "kernels/cuda/ops.h"
#include "kernels/gumbel.h"

namespace ultraspeed::kernels::cuda {

inline constexpr float kBinsPerNat = 64.0f;  // the last bin takes everything 32 nats down
inline constexpr float kMinusInfinity = -__builtin_inff();
inline constexpr int32_t kNoToken = 0x7fffffff;
// The logit of a token that a mask forbids, as on the CPU: over a temperature it stays finite.
inline constexpr float kNeverChosen = -1e30f;

__device__ inline bool Filters(const SamplingSpec& spec) {
  return spec.temperature > 0.0f && (spec.top_k > 0 || spec.top_p < 1.0f);
}

// Larger logits have larger ranks; of equal logits (-0 = +0) the lower token.
__device__ inline uint64_t RankOf(float scaled, int32_t token) {
  const uint32_t bits = __float_as_uint(scaled + 0.0f);
  const uint32_t ascending = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t{ascending} << 32 | static_cast<uint32_t>(~token);
}
__device__ inline int32_t TokenOf(uint64_t rank) { return ~static_cast<int32_t>(rank); }
__device__ inline float ScaledOf(uint64_t rank) {
  const auto ascending = static_cast<uint32_t>(rank >> 32);
  return __uint_as_float((ascending >> 31) != 0 ? ascending & 0x7fffffffu : ~ascending);
}

__device__ inline int BinOf(float scaled, float max) {
  const float distance = (max - scaled) * kBinsPerNat;
  return distance < kBins - 1 ? static_cast<int>(distance) : kBins - 1;
}
// Probability relative to the most likely token's, in units of 2^-40.
__device__ inline uint64_t MassOf(float scaled, float max) {
  return __float2ull_rn(expf(scaled - max) * 0x1p40f);
}
// The mass at which top-p stops.
__device__ inline uint64_t WantedMass(float top_p, uint64_t mass) {
  return static_cast<uint64_t>(ceil(static_cast<double>(top_p) * static_cast<double>(mass)));
}

// ---- Sums over a group

// A bin where a running sum reaches a target, and the sum before it.
struct Crossing {
  int bin;
  uint64_t before;
};

// Shared memory of a group.
struct FilterScratch {
  uint64_t sums[kWarpLanes];
  Candidate candidates[kWarpLanes];
  Crossing crossing;
};

// Sum of `value` over all threads before this one; `total` of all.
template <typename Group>
__device__ uint64_t ExclusiveSum(Group group, uint64_t value, uint64_t& total,
                                 uint64_t* shared /*[warps]*/) {
  const int lane = group.Thread() % kWarpLanes, warp = group.Thread() / kWarpLanes;
  uint64_t inclusive = value;
#pragma unroll
  for (int step = 1; step < kWarpLanes; step *= 2) {
    const uint64_t below = __shfl_up_sync(kAllLanes, inclusive, step);
    if (lane >= step) inclusive += below;
  }
  if (lane == kWarpLanes - 1) shared[warp] = inclusive;
  group.Sync();
  uint64_t before = 0;
  total = 0;
  for (int w = 0; w < group.NumThreads() / kWarpLanes; ++w) {
    if (w == warp) before = total;
    total += shared[w];
  }
  group.Sync();
  return before + inclusive - value;
}

// First bin at which the sum of amounts reaches `target` (of at least 1); the last bin if none
// does.
template <typename Group, typename Integer>
__device__ __noinline__ Crossing FindCrossing(Group group, const Integer* amounts /*[kBins]*/,
                                              uint64_t target, FilterScratch& scratch) {
  constexpr int kPerThread = (kBins + Group::NumThreads() - 1) / Group::NumThreads();
  const int first = group.Thread() * kPerThread, end = min(first + kPerThread, kBins);
  uint64_t own = 0;
  for (int bin = first; bin < end; ++bin) own += amounts[bin];
  uint64_t total;
  uint64_t sum = ExclusiveSum(group, own, total, scratch.sums);
  if (group.Thread() == 0 && total < target) {
    scratch.crossing = {kBins - 1, total - amounts[kBins - 1]};
  }
  for (int bin = first; bin < end; ++bin) {
    const uint64_t amount = amounts[bin];
    if (sum < target && sum + amount >= target) scratch.crossing = {bin, sum};
    sum += amount;
  }
  group.Sync();
  const Crossing result = scratch.crossing;
  group.Sync();
  return result;
}

// ---- Steps

// Adds a slice to its row's histogram by way of one in shared memory.
template <typename Group, typename ForEach>
__device__ void AddToHistogram(Group group, ForEach for_each, float temperature, float max,
                               FilterHistogram& shared, FilterHistogram& of_row) {
  for (int bin = group.Thread(); bin < kBins; bin += Group::NumThreads()) {
    shared.counts[bin] = 0;
    shared.masses[bin] = 0;
  }
  group.Sync();
  for_each([&](int /*token*/, float logit) {
    const float scaled = __fdiv_rn(logit, temperature);
    const int bin = BinOf(scaled, max);
    atomicAdd(&shared.counts[bin], 1u);
    atomicAdd(&shared.masses[bin], static_cast<Atomic64>(MassOf(scaled, max)));
  });
  group.Sync();
  for (int bin = group.Thread(); bin < kBins; bin += Group::NumThreads()) {
    if (shared.counts[bin] == 0) continue;
    atomicAdd(&of_row.counts[bin], shared.counts[bin]);
    atomicAdd(&of_row.masses[bin], shared.masses[bin]);
  }
}

// Totals over the bins before the undecided ones.
struct Decided {
  uint64_t count;
  uint64_t mass;
  uint64_t mass_of_all;
};

// The bins where both filters' boundaries lie, inclusive: those before `first` are kept, those
// after `last` are not.
struct UndecidedBins {
  int first, last;
};

template <typename Group>
__device__ UndecidedBins NarrowDown(Group group, const SamplingSpec& spec, int vocabulary_used,
                                    const FilterHistogram& histogram, FilterScratch& scratch,
                                    Decided& decided) {
  const uint32_t* const counts = histogram.counts;
  const Atomic64* const masses = histogram.masses;
  const auto sum_before = [&](const auto* amounts, int end) {
    uint64_t sum = 0;
    for (int bin = group.Thread(); bin < end; bin += Group::NumThreads()) sum += amounts[bin];
    return GroupReduce(group, sum, AddIntegers(), scratch.sums);
  };
  decided.mass_of_all = sum_before(masses, kBins);
  UndecidedBins bins = {kBins - 1, kBins - 1};
  uint64_t mass_low = decided.mass_of_all, mass_high = decided.mass_of_all;
  if (spec.top_k > 0) {
    const int top_k = min(spec.top_k, vocabulary_used);
    const int bin = FindCrossing(group, counts, top_k, scratch).bin;
    bins = {bin, bin};
    mass_low = sum_before(masses, bin);
    mass_high = mass_low + masses[bin];
  }
  if (spec.top_p < 1.0f) {
    // What top-k keeps weighs between mass_low and mass_high, so top-p stops between these two.
    const auto stop = [&](uint64_t mass) {
      const uint64_t wanted = WantedMass(spec.top_p, mass);
      return FindCrossing(group, masses, wanted > 0 ? wanted : 1, scratch).bin;
    };
    bins.first = min(bins.first, stop(mass_low));
    if (spec.top_k == 0) bins.last = stop(mass_high);
  }
  decided.count = sum_before(counts, bins.first);
  decided.mass = sum_before(masses, bins.first);
  return bins;
}

// The best draw of a slice among the tokens that are kept for certain; the undecided are appended
// to `undecided`, which has room for the row.
template <typename Group, typename ForEach>
__device__ Candidate Sift(Group group, ForEach for_each, const SamplingSpec& spec, int64_t position,
                          float max, const UndecidedBins& bins, uint64_t* undecided,
                          int32_t* num_undecided, FilterScratch& scratch) {
  Candidate drawn = {kMinusInfinity, kNoToken};
  for_each([&](int token, float logit) {
    const float scaled = __fdiv_rn(logit, spec.temperature);
    const int bin = BinOf(scaled, max);
    if (bin > bins.last) return;
    if (bin >= bins.first) {
      undecided[atomicAdd(num_undecided, 1)] = RankOf(scaled, token);
      return;
    }
    const float value = __fadd_rn(scaled, PortableGumbelNoise(spec.seed, position, token));
    if (value > drawn.value) drawn = {value, token};
  });
  return GroupReduce(group, drawn, BetterCandidate(), scratch.candidates);
}

// What is counted until a boundary is reached.
enum class Amount { kTokens, kMass };

// The rank r among rank_at(0 .. count - 1) such that the amounts of all ranks >= r reach `target`
// (of at least 1) and those of the ranks above do not; the smallest rank if they never do. Every
// pass splits the ranks that are left into up to 2048 bins of equal width. `most`: as MassOf's max.
template <typename Group, typename RankAt>
__device__ __noinline__ uint64_t FindBoundary(Group group, RankAt rank_at, int count,
                                              uint64_t target, Amount amount, float most,
                                              Atomic64* amounts /*[kBins]*/,
                                              FilterScratch& scratch) {
  uint64_t low = 0, high = ~uint64_t{0};
  while (true) {
    uint64_t smallest = ~uint64_t{0}, largest = 0;
    for (int i = group.Thread(); i < count; i += Group::NumThreads()) {
      const uint64_t rank = rank_at(i);
      if (rank < low || rank > high) continue;
      smallest = SmallerInteger()(smallest, rank);
      largest = LargerInteger()(largest, rank);
    }
    low = GroupReduce(group, smallest, SmallerInteger(), scratch.sums);
    high = GroupReduce(group, largest, LargerInteger(), scratch.sums);
    if (low >= high) return low;
    for (int bin = group.Thread(); bin < kBins; bin += Group::NumThreads()) amounts[bin] = 0;
    group.Sync();
    const uint64_t range = high - low;
    const int shift = max(0, 64 - __clzll(static_cast<long long>(range)) - 11);
    for (int i = group.Thread(); i < count; i += Group::NumThreads()) {
      const uint64_t rank = rank_at(i);
      if (rank < low || rank > high) continue;
      const Atomic64 own = amount == Amount::kTokens ? 1 : MassOf(ScaledOf(rank), most);
      atomicAdd(&amounts[(high - rank) >> shift], own);
    }
    group.Sync();
    const Crossing crossing = FindCrossing(group, amounts, target, scratch);
    // A target that is never reached ends in the bin of the smallest rank.
    const uint64_t last_bin = range >> shift;
    const uint64_t bin = static_cast<uint64_t>(crossing.bin) < last_bin ? crossing.bin : last_bin;
    target -= crossing.before < target ? crossing.before : target;
    high -= bin << shift;
    const uint64_t width = uint64_t{1} << shift;
    if (high - low >= width) low = high - (width - 1);
  }
}

// The best draw of a row: `certain`, of all slices, and the undecided that both filters keep.
template <typename Group, typename RankAt>
__device__ Candidate DrawFiltered(Group group, const SamplingSpec& spec, int64_t position,
                                  int vocabulary_used, float max, const Decided& decided,
                                  RankAt rank_at, int count, Candidate certain,
                                  Atomic64* amounts /*[kBins]*/, FilterScratch& scratch) {
  uint64_t boundary = 0;
  uint64_t mass = decided.mass_of_all;
  if (spec.top_k > 0) {
    const int top_k = min(spec.top_k, vocabulary_used);
    boundary = FindBoundary(group, rank_at, count, top_k - decided.count, Amount::kTokens, max,
                            amounts, scratch);
    uint64_t own = 0;
    for (int i = group.Thread(); i < count; i += Group::NumThreads()) {
      const uint64_t rank = rank_at(i);
      if (rank >= boundary) own += MassOf(ScaledOf(rank), max);
    }
    mass = decided.mass + GroupReduce(group, own, AddIntegers(), scratch.sums);
  }
  if (spec.top_p < 1.0f) {
    const uint64_t wanted = WantedMass(spec.top_p, mass);
    const uint64_t target = wanted > decided.mass ? wanted - decided.mass : 1;
    boundary = LargerInteger()(boundary, FindBoundary(group, rank_at, count, target, Amount::kMass,
                                                      max, amounts, scratch));
  }
  Candidate best = certain;
  for (int i = group.Thread(); i < count; i += Group::NumThreads()) {
    const uint64_t rank = rank_at(i);
    if (rank < boundary) continue;
    const int32_t token = TokenOf(rank);
    const float value = __fadd_rn(ScaledOf(rank), PortableGumbelNoise(spec.seed, position, token));
    best = BetterCandidate()(best, {value, token});
  }
  return GroupReduce(group, best, BetterCandidate(), scratch.candidates);
}

// ---- Log-probabilities, of the unprocessed distribution

inline constexpr int kSliceThreads = 256;

// Tokens of a slice: a multiple of 4, for which one Philox block serves.
__device__ __host__ inline int SliceWidth(int vocabulary_used) {
  constexpr int kQuads = 4 * kSlices;
  return (vocabulary_used + kQuads - 1) / kQuads * 4;
}

// Of exp(logit - max) over a slice. `for_each` deals its tokens to threads 0 .. kSliceThreads - 1
// in turn; a warp's sums meet in a tree, warps follow each other (idle ones add zero).
template <typename Group, typename ForEach>
__device__ float SumOfExponentials(Group group, ForEach for_each, float max,
                                   float* shared /*[warps]*/) {
  float sum = 0.0f;
  for_each([&](int /*token*/, float logit) { sum = __fadd_rn(sum, expf(logit - max)); });
  return GroupReduce(group, sum, AddFloats(), shared);
}

__device__ inline float LogProbability(float logit, float max, float sum) {
  return logit > kMinusInfinity ? logit - max - PortableLog(sum) : kMinusInfinity;
}

// Of a row whose largest logit is `max`; slice_at(i) of kSlices.
template <typename SliceAt>
__device__ float LogProbabilityOfSlices(float logit, float max, SliceAt slice_at) {
  float sum = 0.0f;
  for (int slice = 0; slice < kSlices; ++slice) {
    const SliceSum of_slice = slice_at(slice);
    if (of_slice.max > kMinusInfinity) {
      sum = fmaf(of_slice.sum, expf(of_slice.max - max), sum);
    }
  }
  return LogProbability(logit, max, sum);
}

}  // namespace ultraspeed::kernels::cuda
