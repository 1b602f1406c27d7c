// The drafter's Markov head for the executor of single operations: what the token before a draft
// makes likelier, added to the draft's logits. Bytes: the head's matrix [V, R], once a row, from
// L2.
#include "kernels/check.h"
#include "kernels/cuda/device/numbers.cuh"
#include "kernels/cuda/device/tile_vector.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kRankMax = 1024;

const uint8_t* TilesOf(const Matrix& matrix) { return static_cast<const uint8_t*>(matrix.data); }

struct Parameters {
  int rank, num_tiles, vocabulary;
  const bf16* previous;
  const uint8_t *next, *gate_previous;  // packed
  const float* gate_bias;
};

// A block has a few tiles of one row's vocabulary; each makes the row's state for itself.
__global__ void __launch_bounds__(kWarps * 32)
    AddBias(Parameters head, const int32_t* tokens, const float* gates, float* logits) {
  __shared__ alignas(16) bf16 embedded[kRankMax], gated[kRankMax];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>(blockIdx.y), rank = head.rank;
  const size_t tile_bytes = TileBytes(WeightFormat::kBf16, rank);
  const bf16* const source = head.previous + static_cast<int64_t>(tokens[row]) * rank;
  for (int i = static_cast<int>(threadIdx.x); i < rank; i += kWarps * 32) embedded[i] = source[i];
  __syncthreads();
  const bf16* state = embedded;
  if (gates != nullptr) {
    for (int tile = warp; tile < rank / kTileRows; tile += kWarps) {
      const float2 sums =
          TileTimesVector(head.gate_previous + tile * tile_bytes, embedded, rank, lane);
      if (lane % 4 != 0) continue;
      const int i = tile * kTileRows + lane / 4;
      const float* const gate = gates + static_cast<int64_t>(row) * rank;
      gated[i] = GatedElement(embedded[i], gate[i] + sums.x + head.gate_bias[i]);
      gated[i + 8] = GatedElement(embedded[i + 8], gate[i + 8] + sums.y + head.gate_bias[i + 8]);
    }
    __syncthreads();
    state = gated;
  }
  const int tile = static_cast<int>(blockIdx.x) * kWarps + warp;
  if (tile >= head.num_tiles) return;
  const float2 bias = TileTimesVector(head.next + tile * tile_bytes, state, rank, lane);
  if (lane % 4 != 0) return;
  const int token = tile * kTileRows + lane / 4;
  float* const out = logits + static_cast<int64_t>(row) * head.vocabulary + token;
  if (token < head.vocabulary) out[0] += bias.x;
  if (token + 8 < head.vocabulary) out[8] += bias.y;
}

// [S, B] = anchor and drafts, of drafts that lie place after place.
__global__ void GatherBlocks(const int32_t* anchors, const int32_t* by_place, int num_sequences,
                             int block, int32_t* block_tokens, int32_t* drafts) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= num_sequences * block) return;
  const int s = i / block, place = i % block;
  const int32_t token = place == 0 ? anchors[s] : by_place[(place - 1) * num_sequences + s];
  block_tokens[i] = token;
  if (place > 0) drafts[s * (block - 1) + place - 1] = token;
}

}  // namespace

void AddMarkovBias(const MarkovHead& head, const int32_t* previous_tokens, const float* gates,
                   int num_rows, float* logits, cudaStream_t stream) {
  KERNELS_CHECK(head.rank, <=, kRankMax);
  KERNELS_CHECK(head.rank % 32, ==, 0);
  if (num_rows == 0) return;
  const Parameters parameters = {.rank = head.rank,
                                 .num_tiles = NumRowTiles(head.next.num_rows),
                                 .vocabulary = head.next.num_rows,
                                 .previous = head.previous,
                                 .next = TilesOf(head.next),
                                 .gate_previous = TilesOf(head.gate_previous),
                                 .gate_bias = head.gate_bias};
  const dim3 grid(static_cast<unsigned>((parameters.num_tiles + kWarps - 1) / kWarps),
                  static_cast<unsigned>(num_rows));
  AddBias<<<grid, kWarps * 32, 0, stream>>>(parameters, previous_tokens, gates, logits);
  CheckLaunch("AddMarkovBias");
}

void GatherBlocks(const int32_t* anchors, const int32_t* drafts_by_place, int num_sequences,
                  int block, int32_t* block_tokens, int32_t* drafts, cudaStream_t stream) {
  constexpr int kThreads = 128;
  const int count = num_sequences * block;
  if (count == 0) return;
  GatherBlocks<<<(count + kThreads - 1) / kThreads, kThreads, 0, stream>>>(
      anchors, drafts_by_place, num_sequences, block, block_tokens, drafts);
  CheckLaunch("GatherBlocks");
}

}  // namespace ultraspeed::kernels::cuda
