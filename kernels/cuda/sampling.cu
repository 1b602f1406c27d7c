// From logits to tokens: greedy, Gumbel-max over everything, Gumbel-max over what top-k and top-p
// keep; log-probabilities; acceptance of drafts.
//
// A row is cut into 32 slices, a block each, and everything that leaves a slice is merged in a
// fixed order. Four launches, none of which the host needs to know about: Scan (largest logit, best
// draw, sum of exponentials), then for rows with filters Histogram and Gather (see
// sampling_filter.cuh), then Choose, a block per row. Plain rows leave Histogram and Gather at
// once. Bytes: 4 V per row and pass, from L2.
#include <climits>

#include "kernels/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sampling_filter.cuh"
#include "kernels/gumbel.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kSlices = kWarpLanes;  // a warp merges them, a lane each
constexpr int kSliceThreads = 256;
constexpr int kChooseThreads = 1024;
constexpr int kTopThreads = 512;
constexpr int kTopMax = 8;
constexpr int kNoToken = INT_MAX;

// What Scan finds in a slice, and Gather in a row with filters.
struct Slice {
  Candidate greedy;
  Candidate drawn;  // with filters: among the tokens that are kept for certain
  float sum;        // of exp(logit - greedy.value), if a log-probability is wanted
};

// Of a row with filters: totals over the bins before the undecided ones.
struct Decided {
  uint64_t count;
  uint64_t mass;
  uint64_t mass_of_all;
  int num_undecided;
};

struct Workspace {
  Slice* slices;        // [n, kSlices]
  Decided* decided;     // [n]
  uint32_t* counts;     // [n, kBins]
  Atomic64* masses;     // [n, kBins]
  uint64_t* undecided;  // [n, V] ranks
};

struct SampleParams {
  const float* logits;
  int vocabulary, vocabulary_used;
  int slice_width;  // tokens, a multiple of 4: one Philox block serves four
  int32_t banned_token;
  const SampleRow* rows;
  int32_t* tokens;
  float* logprobs;
  Workspace workspace;

  // Logit as everything below sees it.
  __device__ float Logit(int row, int token) const {
    const float x = logits[static_cast<int64_t>(row) * vocabulary + token];
    return x != x || token == banned_token ? kMinusInfinity : x;
  }
};

__device__ Candidate MergedGreedy(const Slice* slices) {
  return WarpReduce(slices[threadIdx.x % kWarpLanes].greedy, BetterCandidate());
}

__global__ void __launch_bounds__(kSliceThreads) ScanKernel(SampleParams params) {
  __shared__ Candidate candidates[kSliceThreads / kWarpLanes];
  __shared__ float sums[kSliceThreads / kWarpLanes];
  const int row = static_cast<int>(blockIdx.y), slice = static_cast<int>(blockIdx.x);
  const SampleRow& spec = params.rows[row];
  const int width = params.slice_width;
  const int begin = slice * width;
  const int end = min(begin + width, params.vocabulary_used);
  const bool filters = Filters(spec.spec);
  const bool draws = spec.spec.temperature > 0.0f && !filters;
  Candidate greedy = {kMinusInfinity, kNoToken}, drawn = {kMinusInfinity, kNoToken};
  for (int quad = begin + static_cast<int>(threadIdx.x) * 4; quad < end;
       quad += kSliceThreads * 4) {
    Philox4x32 random = {};
    if (draws) {
      const auto place = static_cast<uint64_t>(spec.position);
      random = Philox({{static_cast<uint32_t>(quad) / 4, static_cast<uint32_t>(place),
                        static_cast<uint32_t>(place >> 32), 0}},
                      static_cast<uint32_t>(spec.spec.seed),
                      static_cast<uint32_t>(spec.spec.seed >> 32));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (quad + i >= end) break;
      const float logit = params.Logit(row, quad + i);
      if (logit > greedy.value) greedy = {logit, quad + i};
      if (draws) {
        const float value =
            __fadd_rn(__fdiv_rn(logit, spec.spec.temperature), GumbelFromBits(random.x[i]));
        if (value > drawn.value) drawn = {value, quad + i};
      }
    }
  }
  greedy = BlockReduce(greedy, BetterCandidate(), candidates);
  if (draws) drawn = BlockReduce(drawn, BetterCandidate(), candidates);
  float sum = 0.0f;
  if (spec.want_logprob != 0 && greedy.value > kMinusInfinity) {
    for (int token = begin + static_cast<int>(threadIdx.x); token < end; token += kSliceThreads) {
      sum += expf(params.Logit(row, token) - greedy.value);
    }
    sum = BlockReduce(sum, AddFloats(), sums);
  }
  const Workspace& workspace = params.workspace;
  if (threadIdx.x == 0) workspace.slices[row * kSlices + slice] = {greedy, drawn, sum};
  if (!filters) return;
  constexpr int kBinsPerSlice = kBins / kSlices;
  if (threadIdx.x < kBinsPerSlice) {
    const int bin = row * kBins + slice * kBinsPerSlice + static_cast<int>(threadIdx.x);
    workspace.counts[bin] = 0;
    workspace.masses[bin] = 0;
  }
  if (slice == 0 && threadIdx.x == 0) workspace.decided[row].num_undecided = 0;
}

// Adds a slice to its row's histogram.
__global__ void __launch_bounds__(kSliceThreads) HistogramKernel(SampleParams params) {
  const int row = static_cast<int>(blockIdx.y), slice = static_cast<int>(blockIdx.x);
  const SamplingSpec& spec = params.rows[row].spec;
  if (!Filters(spec)) return;
  const Workspace& workspace = params.workspace;
  const float largest = MergedGreedy(workspace.slices + row * kSlices).value;
  if (largest == kMinusInfinity) return;
  const float max = __fdiv_rn(largest, spec.temperature);
  __shared__ uint32_t counts[kBins];
  __shared__ Atomic64 masses[kBins];
  for (int bin = threadIdx.x; bin < kBins; bin += kSliceThreads) {
    counts[bin] = 0;
    masses[bin] = 0;
  }
  __syncthreads();
  const int begin = slice * params.slice_width;
  const int end = min(begin + params.slice_width, params.vocabulary_used);
  for (int token = begin + static_cast<int>(threadIdx.x); token < end; token += kSliceThreads) {
    const float scaled = __fdiv_rn(params.Logit(row, token), spec.temperature);
    const int bin = BinOf(scaled, max);
    atomicAdd(&counts[bin], 1u);
    atomicAdd(&masses[bin], static_cast<Atomic64>(MassOf(scaled, max)));
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += kSliceThreads) {
    if (counts[bin] == 0) continue;
    atomicAdd(&workspace.counts[row * kBins + bin], counts[bin]);
    atomicAdd(&workspace.masses[row * kBins + bin], masses[bin]);
  }
}

// The bins where both filters' boundaries lie, inclusive.
struct UndecidedBins {
  int first, last;
};

// Decides all bins but a few: those before `first` are kept, those after `last` are not. Every
// block of a row finds the same.
__device__ UndecidedBins NarrowDown(const SampleParams& params, int row, Decided& decided) {
  const SamplingSpec& spec = params.rows[row].spec;
  const uint32_t* counts = params.workspace.counts + row * kBins;
  const Atomic64* masses = params.workspace.masses + row * kBins;
  __shared__ uint64_t scratch[kSliceThreads / kWarpLanes];
  const auto sum_before = [&](const auto* amounts, int end) {
    uint64_t sum = 0;
    for (int bin = threadIdx.x; bin < end; bin += kSliceThreads) sum += amounts[bin];
    return BlockReduce(sum, AddIntegers(), scratch);
  };
  decided.mass_of_all = sum_before(masses, kBins);
  UndecidedBins bins = {kBins - 1, kBins - 1};
  uint64_t mass_low = decided.mass_of_all, mass_high = decided.mass_of_all;
  if (spec.top_k > 0) {
    const int top_k = min(spec.top_k, params.vocabulary_used);
    const int bin = FindCrossing<kSliceThreads>(counts, top_k).bin;
    bins = {bin, bin};
    mass_low = sum_before(masses, bin);
    mass_high = mass_low + masses[bin];
  }
  if (spec.top_p < 1.0f) {
    // What top-k keeps weighs between mass_low and mass_high, so top-p stops between these two.
    const auto stop = [&](uint64_t mass) {
      const uint64_t wanted = WantedMass(spec.top_p, mass);
      return FindCrossing<kSliceThreads>(masses, wanted > 0 ? wanted : 1).bin;
    };
    bins.first = min(bins.first, stop(mass_low));
    if (spec.top_k == 0) bins.last = stop(mass_high);
  }
  decided.count = sum_before(counts, bins.first);
  decided.mass = sum_before(masses, bins.first);
  return bins;
}

// Lets the tokens that are kept for certain compete, and lists the undecided.
__global__ void __launch_bounds__(kSliceThreads) GatherKernel(SampleParams params) {
  const int row = static_cast<int>(blockIdx.y), slice = static_cast<int>(blockIdx.x);
  const SampleRow& spec = params.rows[row];
  if (!Filters(spec.spec)) return;
  const Workspace& workspace = params.workspace;
  Slice* slices = workspace.slices + row * kSlices;
  const float largest = MergedGreedy(slices).value;
  if (largest == kMinusInfinity) return;
  const float max = __fdiv_rn(largest, spec.spec.temperature);
  Decided decided;
  const UndecidedBins bins = NarrowDown(params, row, decided);
  Decided& shared_decided = workspace.decided[row];
  if (slice == 0 && threadIdx.x == 0) {
    shared_decided.count = decided.count;
    shared_decided.mass = decided.mass;
    shared_decided.mass_of_all = decided.mass_of_all;
  }
  uint64_t* undecided = workspace.undecided + static_cast<int64_t>(row) * params.vocabulary;
  const int begin = slice * params.slice_width;
  const int end = min(begin + params.slice_width, params.vocabulary_used);
  Candidate drawn = {kMinusInfinity, kNoToken};
  for (int token = begin + static_cast<int>(threadIdx.x); token < end; token += kSliceThreads) {
    const float scaled = __fdiv_rn(params.Logit(row, token), spec.spec.temperature);
    const int bin = BinOf(scaled, max);
    if (bin > bins.last) continue;
    if (bin >= bins.first) {
      undecided[atomicAdd(&shared_decided.num_undecided, 1)] = RankOf(scaled, token);
      continue;
    }
    const float value =
        __fadd_rn(scaled, PortableGumbelNoise(spec.spec.seed, spec.position, token));
    if (value > drawn.value) drawn = {value, token};
  }
  __shared__ Candidate candidates[kSliceThreads / kWarpLanes];
  drawn = BlockReduce(drawn, BetterCandidate(), candidates);
  if (threadIdx.x == 0) slices[slice].drawn = drawn;
}

// Best draw of a row with filters: those kept for certain, and the undecided that both filters
// keep.
__device__ Candidate DrawFiltered(const SampleParams& params, int row, float max,
                                  Candidate certain) {
  const SampleRow& spec = params.rows[row];
  const Decided& decided = params.workspace.decided[row];
  const uint64_t* ranks =
      params.workspace.undecided + static_cast<int64_t>(row) * params.vocabulary;
  const int count = decided.num_undecided;
  __shared__ uint64_t scratch[kChooseThreads / kWarpLanes];
  __shared__ Candidate candidates[kChooseThreads / kWarpLanes];
  const auto mass_of = [&](uint64_t rank) { return MassOf(ScaledOf(rank), max); };
  uint64_t boundary = 0;
  uint64_t mass = decided.mass_of_all;
  if (spec.spec.top_k > 0) {
    const int top_k = min(spec.spec.top_k, params.vocabulary_used);
    boundary = FindBoundary<kChooseThreads>(ranks, count, top_k - decided.count,
                                            [](uint64_t) { return uint64_t{1}; });
    uint64_t own = 0;
    for (int i = threadIdx.x; i < count; i += kChooseThreads) {
      if (ranks[i] >= boundary) own += mass_of(ranks[i]);
    }
    mass = decided.mass + BlockReduce(own, AddIntegers(), scratch);
  }
  if (spec.spec.top_p < 1.0f) {
    const uint64_t wanted = WantedMass(spec.spec.top_p, mass);
    const uint64_t target = wanted > decided.mass ? wanted - decided.mass : 1;
    boundary =
        LargerInteger()(boundary, FindBoundary<kChooseThreads>(ranks, count, target, mass_of));
  }
  Candidate best = certain;
  for (int i = threadIdx.x; i < count; i += kChooseThreads) {
    const uint64_t rank = ranks[i];
    if (rank < boundary) continue;
    const int32_t token = TokenOf(rank);
    const float value =
        __fadd_rn(ScaledOf(rank), PortableGumbelNoise(spec.spec.seed, spec.position, token));
    best = BetterCandidate()(best, {value, token});
  }
  return BlockReduce(best, BetterCandidate(), candidates);
}

__device__ float LogProbability(float logit, float max, float sum) {
  return logit > kMinusInfinity ? logit - max - PortableLog(sum) : kMinusInfinity;
}

__global__ void __launch_bounds__(kChooseThreads) ChooseKernel(SampleParams params) {
  const int row = static_cast<int>(blockIdx.x);
  const SampleRow& spec = params.rows[row];
  const Slice* slices = params.workspace.slices + row * kSlices;
  const Candidate greedy = MergedGreedy(slices);
  Candidate chosen = greedy;
  if (spec.spec.temperature > 0.0f && greedy.value > kMinusInfinity) {
    chosen = WarpReduce(slices[threadIdx.x % kWarpLanes].drawn, BetterCandidate());
    if (Filters(spec.spec)) {
      chosen = DrawFiltered(params, row, __fdiv_rn(greedy.value, spec.spec.temperature), chosen);
    }
  }
  if (threadIdx.x != 0) return;
  if (chosen.token == kNoToken) chosen.token = 0;  // nothing can be chosen
  params.tokens[row] = chosen.token;
  if (params.logprobs == nullptr) return;
  float logprob = 0.0f;
  if (spec.want_logprob != 0) {
    float sum = 0.0f;
    for (int slice = 0; slice < kSlices; ++slice) {
      if (slices[slice].greedy.value > kMinusInfinity) {
        sum = fmaf(slices[slice].sum, expf(slices[slice].greedy.value - greedy.value), sum);
      }
    }
    logprob = LogProbability(params.Logit(row, chosen.token), greedy.value, sum);
  }
  params.logprobs[row] = logprob;
}

// A block per row: each thread keeps the best n of its tokens, then n rounds of finding the best.
__global__ void __launch_bounds__(kTopThreads)
    TopLogprobsKernel(const float* logits, int vocabulary, int vocabulary_used, int n,
                      int32_t* tokens, float* logprobs) {
  __shared__ Candidate candidates[kTopThreads / kWarpLanes];
  __shared__ float sums[kTopThreads / kWarpLanes];
  const int row = static_cast<int>(blockIdx.x);
  const auto logit = [&](int token) {
    const float x = logits[static_cast<int64_t>(row) * vocabulary + token];
    return x != x ? kMinusInfinity : x;
  };
  const BetterCandidate better;
  Candidate best[kTopMax];  // descending
#pragma unroll
  for (int i = 0; i < kTopMax; ++i) best[i] = {kMinusInfinity, kNoToken};
  for (int token = threadIdx.x; token < vocabulary_used; token += kTopThreads) {
    Candidate next = {logit(token), token};
#pragma unroll
    for (int i = 0; i < kTopMax; ++i) {
      const Candidate winner = better(best[i], next);
      if (winner.token == next.token) {
        next = best[i];
        best[i] = winner;
      }
    }
  }
  float max = 0.0f, sum = 0.0f;
  for (int place = 0; place < n; ++place) {
    const Candidate winner = BlockReduce(best[0], better, candidates);
    if (best[0].token == winner.token) {
#pragma unroll
      for (int i = 0; i + 1 < kTopMax; ++i) best[i] = best[i + 1];
      best[kTopMax - 1] = {kMinusInfinity, kNoToken};
    }
    if (place == 0) {
      max = winner.value;
      for (int token = threadIdx.x; token < vocabulary_used; token += kTopThreads) {
        sum += expf(logit(token) - max);
      }
      sum = BlockReduce(sum, AddFloats(), sums);
    }
    if (threadIdx.x == 0) {
      tokens[row * n + place] = winner.token;
      logprobs[row * n + place] = LogProbability(winner.value, max, sum);
    }
  }
}

__global__ void AcceptKernel(const int32_t* drafts, const int32_t* chosen, int num_sequences,
                             int block, int32_t* num_accepted, int32_t* kept) {
  const int s = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (s >= num_sequences) return;
  int accepted = 0;
  while (accepted < block - 1 &&
         drafts[s * (block - 1) + accepted] == chosen[s * block + accepted]) {
    ++accepted;
  }
  num_accepted[s] = accepted;
  kept[s] = accepted + 1;
}

// Hands out 16-byte aligned pieces of a workspace; with null only counts.
class Pieces {
 public:
  explicit Pieces(void* begin) : begin_(static_cast<uint8_t*>(begin)) {}
  template <typename T>
  T* Take(size_t count) {
    T* piece = reinterpret_cast<T*>(begin_ + bytes_);
    bytes_ += (count * sizeof(T) + 15) / 16 * 16;
    return piece;
  }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* begin_;
  size_t bytes_ = 0;
};

Workspace Divide(Pieces& pieces, size_t num_rows, size_t vocabulary) {
  Workspace workspace = {};
  workspace.slices = pieces.Take<Slice>(num_rows * kSlices);
  workspace.decided = pieces.Take<Decided>(num_rows);
  workspace.counts = pieces.Take<uint32_t>(num_rows * kBins);
  workspace.masses = pieces.Take<Atomic64>(num_rows * kBins);
  workspace.undecided = pieces.Take<uint64_t>(num_rows * vocabulary);
  return workspace;
}

}  // namespace

size_t SampleWorkspaceBytes(int num_rows_max, int vocabulary) {
  Pieces pieces(nullptr);
  Divide(pieces, num_rows_max, vocabulary);
  return pieces.bytes();
}

void Sample(float* logits, int num_rows, int vocabulary, int vocabulary_used, int32_t banned_token,
            const SampleRow* rows, int32_t* tokens, float* logprobs, void* workspace,
            cudaStream_t stream) {
  KERNELS_CHECK(vocabulary_used, >, 0);
  KERNELS_CHECK(vocabulary_used, <=, vocabulary);
  if (num_rows == 0) return;
  Pieces pieces(workspace);
  const SampleParams params = {.logits = logits,
                               .vocabulary = vocabulary,
                               .vocabulary_used = vocabulary_used,
                               .slice_width = CeilDiv(vocabulary_used, 4 * kSlices) * 4,
                               .banned_token = banned_token,
                               .rows = rows,
                               .tokens = tokens,
                               .logprobs = logprobs,
                               .workspace = Divide(pieces, num_rows, vocabulary)};
  const dim3 grid(kSlices, num_rows);
  ScanKernel<<<grid, kSliceThreads, 0, stream>>>(params);
  HistogramKernel<<<grid, kSliceThreads, 0, stream>>>(params);
  GatherKernel<<<grid, kSliceThreads, 0, stream>>>(params);
  ChooseKernel<<<num_rows, kChooseThreads, 0, stream>>>(params);
  CheckLaunch("Sample");
}

void TopLogprobs(const float* logits, int num_rows, int vocabulary, int vocabulary_used, int n,
                 int32_t* tokens, float* logprobs, cudaStream_t stream) {
  KERNELS_CHECK(n, >=, 0);
  KERNELS_CHECK(n, <=, kTopMax);
  KERNELS_CHECK(n, <=, vocabulary_used);
  KERNELS_CHECK(vocabulary_used, <=, vocabulary);
  if (n == 0 || num_rows == 0) return;
  TopLogprobsKernel<<<num_rows, kTopThreads, 0, stream>>>(logits, vocabulary, vocabulary_used, n,
                                                          tokens, logprobs);
  CheckLaunch("TopLogprobs");
}

void Accept(const int32_t* drafts, const int32_t* chosen, int num_sequences, int block,
            int32_t* num_accepted, int32_t* kept, cudaStream_t stream) {
  KERNELS_CHECK(block, >, 0);
  if (num_sequences == 0) return;
  constexpr int kThreads = 64;
  AcceptKernel<<<CeilDiv(num_sequences, kThreads), kThreads, 0, stream>>>(
      drafts, chosen, num_sequences, block, num_accepted, kept);
  CheckLaunch("Accept");
}

}  // namespace ultraspeed::kernels::cuda
