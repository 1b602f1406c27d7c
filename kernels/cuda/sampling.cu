// From logits to tokens: greedy, Gumbel-max over everything, Gumbel-max over what top-k and top-p
// keep; log-probabilities; acceptance of drafts.
//
// A row is cut into 32 slices, a block each, and everything that leaves a slice is merged in a
// fixed order. Four launches, none of which the host needs to know about: Scan (largest logit, best
// draw, sum of exponentials), then for rows with filters Histogram and Gather (see
// sampling_filter.cuh), then Choose, a block per row. Plain rows leave Histogram and Gather at
// once. Bytes: 4 V per row and pass, from L2.
#include "kernels/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sampling_filter.cuh"
#include "kernels/gumbel.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kChooseThreads = 1024;
constexpr int kTopThreads = 512;
constexpr int kTopMax = 8;
constexpr int kMaskThreads = 256;
static_assert(kSlices == kWarpLanes);   // a warp merges them, a lane each

template <int kThreads>
struct BlockOf {
  static __device__ int Thread() { return static_cast<int>(threadIdx.x); }
  static constexpr __device__ int NumThreads() { return kThreads; }
  static __device__ void Sync() { __syncthreads(); }
};
using SliceBlock = BlockOf<kSliceThreads>;
using RowBlock = BlockOf<kChooseThreads>;

// What Scan finds in a slice, and Gather in a row with filters.
struct Slice {
  Candidate greedy;
  Candidate drawn;  // with filters: among the tokens that are kept for certain
  float sum;        // of exp(logit - greedy.value), if a log-probability is wanted
};

// Of a row with filters.
struct Undecided {
  Decided decided;
  int32_t count;
};

struct Workspace {
  Slice* slices;                // [n, kSlices]
  Undecided* undecided;         // [n]
  FilterHistogram* histograms;  // [n]
  uint64_t* undecided_ranks;    // [n, V]
};

struct SampleParams {
  const float* logits;
  int vocabulary, vocabulary_used;
  int slice_width;
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

// The block's slice, dealt to its threads in turn.
template <typename Body>
__device__ void ForEachOfSlice(const SampleParams& params, Body body) {
  const int row = static_cast<int>(blockIdx.y);
  const int begin = static_cast<int>(blockIdx.x) * params.slice_width;
  const int end = min(begin + params.slice_width, params.vocabulary_used);
  for (int token = begin + SliceBlock::Thread(); token < end; token += kSliceThreads) {
    body(token, params.Logit(row, token));
  }
}

// A thread a token.
__global__ void __launch_bounds__(kMaskThreads)
    MaskKernel(float* logits, int vocabulary, int vocabulary_used, const uint32_t* masks) {
  const int token = static_cast<int>(blockIdx.x) * kMaskThreads + static_cast<int>(threadIdx.x);
  const int row = static_cast<int>(blockIdx.y);
  if (token >= vocabulary_used) return;
  const int row_words = (vocabulary_used + 31) / 32;
  const uint32_t word = masks[static_cast<int64_t>(row) * row_words + token / 32];
  if ((word >> (token % 32) & 1) == 0)
    logits[static_cast<int64_t>(row) * vocabulary + token] = kNeverChosen;
}

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
    sum = SumOfExponentials(
        SliceBlock(), [&](auto body) { ForEachOfSlice(params, body); }, greedy.value, sums);
  }
  const Workspace& workspace = params.workspace;
  if (threadIdx.x == 0) workspace.slices[row * kSlices + slice] = {greedy, drawn, sum};
  if (!filters) return;
  constexpr int kBinsPerSlice = kBins / kSlices;
  if (threadIdx.x < kBinsPerSlice) {
    const int bin = slice * kBinsPerSlice + static_cast<int>(threadIdx.x);
    workspace.histograms[row].counts[bin] = 0;
    workspace.histograms[row].masses[bin] = 0;
  }
  if (slice == 0 && threadIdx.x == 0) workspace.undecided[row].count = 0;
}

// Adds a slice to its row's histogram.
__global__ void __launch_bounds__(kSliceThreads) HistogramKernel(SampleParams params) {
  const int row = static_cast<int>(blockIdx.y);
  const SamplingSpec& spec = params.rows[row].spec;
  if (!Filters(spec)) return;
  const Workspace& workspace = params.workspace;
  const float largest = MergedGreedy(workspace.slices + row * kSlices).value;
  if (largest == kMinusInfinity) return;
  __shared__ FilterHistogram histogram;
  AddToHistogram(
      SliceBlock(), [&](auto body) { ForEachOfSlice(params, body); }, spec.temperature,
      __fdiv_rn(largest, spec.temperature), histogram, workspace.histograms[row]);
}

// Lets the tokens that are kept for certain compete, and lists the undecided. Every block of a row
// decides the same bins.
__global__ void __launch_bounds__(kSliceThreads) GatherKernel(SampleParams params) {
  const int row = static_cast<int>(blockIdx.y), slice = static_cast<int>(blockIdx.x);
  const SampleRow& spec = params.rows[row];
  if (!Filters(spec.spec)) return;
  const Workspace& workspace = params.workspace;
  Slice* slices = workspace.slices + row * kSlices;
  const float largest = MergedGreedy(slices).value;
  if (largest == kMinusInfinity) return;
  __shared__ FilterScratch scratch;
  Decided decided;
  const UndecidedBins bins = NarrowDown(SliceBlock(), spec.spec, params.vocabulary_used,
                                        workspace.histograms[row], scratch, decided);
  Undecided& undecided = workspace.undecided[row];
  if (slice == 0 && threadIdx.x == 0) undecided.decided = decided;
  const Candidate drawn = Sift(
      SliceBlock(), [&](auto body) { ForEachOfSlice(params, body); }, spec.spec, spec.position,
      __fdiv_rn(largest, spec.spec.temperature), bins,
      workspace.undecided_ranks + static_cast<int64_t>(row) * params.vocabulary, &undecided.count,
      scratch);
  if (threadIdx.x == 0) slices[slice].drawn = drawn;
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
      __shared__ FilterScratch scratch;
      __shared__ Atomic64 amounts[kBins];
      const Undecided& undecided = params.workspace.undecided[row];
      const uint64_t* const ranks =
          params.workspace.undecided_ranks + static_cast<int64_t>(row) * params.vocabulary;
      chosen = DrawFiltered(
          RowBlock(), spec.spec, spec.position, params.vocabulary_used,
          __fdiv_rn(greedy.value, spec.spec.temperature), undecided.decided,
          [ranks](int i) { return ranks[i]; }, undecided.count, chosen, amounts, scratch);
    }
  }
  if (threadIdx.x != 0) return;
  if (chosen.token == kNoToken) chosen.token = 0;  // nothing can be chosen
  params.tokens[row] = chosen.token;
  if (params.logprobs == nullptr) return;
  params.logprobs[row] =
      spec.want_logprob == 0
          ? 0.0f
          : LogProbabilityOfSlices(params.Logit(row, chosen.token), greedy.value, [&](int slice) {
              return SliceSum{slices[slice].greedy.value, slices[slice].sum};
            });
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
  workspace.undecided = pieces.Take<Undecided>(num_rows);
  workspace.histograms = pieces.Take<FilterHistogram>(num_rows);
  workspace.undecided_ranks = pieces.Take<uint64_t>(num_rows * vocabulary);
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
                               .slice_width = SliceWidth(vocabulary_used),
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

void MaskLogits(float* logits, int num_rows, int vocabulary, int vocabulary_used,
                const uint32_t* masks, cudaStream_t stream) {
  if (num_rows == 0) return;
  const dim3 grid((vocabulary_used + kMaskThreads - 1) / kMaskThreads, num_rows);
  MaskKernel<<<grid, kMaskThreads, 0, stream>>>(logits, vocabulary, vocabulary_used, masks);
  CheckLaunch("MaskLogits");
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
