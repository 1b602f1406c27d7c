// Mixture of experts: rows are grouped by expert on the device, then two grouped products and a
// weighted sum.
//
//   GroupKernel      slots (token, k) sorted by expert, cut into token tiles
//   gate and up      a product over the tiles, SwiGLU in registers, bf16 [T * K, F]
//   down             a product over the tiles, fp32 [T * K, H]
//   CombineKernel    out[t] = sum over k ascending of weight * row
// The order of rows within an expert is whatever the sort gave: no row sees its neighbours. Nothing
// depends on the routing on the host: both forms loop over as many tiles as there are. Bytes: the
// matrices of the experts that were chosen.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/stream_product.cuh"
#include "kernels/cuda/wide_product.cuh"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kGroupThreads = 1024;
constexpr int kExpertsMax = kGroupThreads;
constexpr int kCombineThreads = 256;
constexpr size_t kAlignment = 256;
constexpr int kStreamSlotsMax = 16;  // more are faster in the wide form
constexpr int kWideTileTokensMin = 16;

// Tokens of a tile, from the rows that an expert gets if the routing is even. Wider tiles than 64
// would be slower: their sums leave no registers for products on their way.
int TileTokens(int64_t num_slots, int num_experts) {
  if (num_slots <= kStreamSlotsMax) return kStreamTokensMax;
  if (num_slots <= 12 * int64_t{num_experts}) return 16;
  if (num_slots <= 24 * int64_t{num_experts}) return 32;
  return 64;
}

int64_t NumTilesMax(int64_t num_slots, int num_experts, int tile_tokens) {
  return std::min<int64_t>(num_slots, num_experts) + num_slots / tile_tokens;
}

struct Workspace {
  int32_t* num_tiles;
  TokenTile* tiles;
  int32_t* slots;
  void* arranged;     // inputs of the wide form
  void* activations;  // bf16 [T * K, F], or the wide form's inputs
  size_t activation_bytes;
  float* outputs;  // [T * K, H]
  size_t bytes;
};

Workspace Divide(void* memory, const Experts& experts, int num_tokens, int experts_per_token) {
  size_t offset = 0;
  const auto take = [&](size_t bytes) {
    uint8_t* const place = static_cast<uint8_t*>(memory) + offset;
    offset += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return static_cast<void*>(place);
  };
  const auto slots = static_cast<size_t>(num_tokens) * experts_per_token;
  const auto tiles = static_cast<size_t>(NumTilesMax(slots, experts.num_experts, kStreamTokensMax));
  Workspace w = {};
  w.num_tiles = static_cast<int32_t*>(take(sizeof(int32_t)));
  w.tiles = static_cast<TokenTile*>(take(tiles * sizeof(TokenTile)));
  w.slots = static_cast<int32_t*>(take(slots * sizeof(int32_t)));
  // The wide form's tiles have 16 tokens at least; below that a slot has its own.
  const auto arranged_tiles =
      static_cast<int64_t>(NumTilesMax(slots, experts.num_experts, kWideTileTokensMin));
  w.arranged = take(WideInputBytes(slots, arranged_tiles, experts.hidden));
  w.activation_bytes = WideInputBytes(slots, arranged_tiles, experts.ffn_width);
  w.activations = take(w.activation_bytes);
  w.outputs = static_cast<float*>(take(slots * experts.hidden * sizeof(float)));
  w.bytes = offset;
  return w;
}

// One block: histogram, scan over experts, scatter.
__global__ void __launch_bounds__(kGroupThreads)
    GroupKernel(const int32_t* expert_ids, int num_slots, int num_experts, int tile_tokens,
                int32_t* num_tiles, TokenTile* tiles, int32_t* slots) {
  __shared__ int32_t next[kExpertsMax];  // count, then the next free place of an expert
  __shared__ int3 sums[kExpertsMax];     // inclusive sums over experts: slots, tiles, their rows
  AllowNextKernel();
  const int expert = threadIdx.x;
  next[expert] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < num_slots; i += kGroupThreads) atomicAdd(&next[expert_ids[i]], 1);
  __syncthreads();

  const int count = next[expert];
  const int tile_count = (count + tile_tokens - 1) / tile_tokens;
  const int whole_tiles = count / tile_tokens;
  const int num_rows = whole_tiles * tile_tokens + WideInputs::Rows(count % tile_tokens);
  sums[expert] = {count, tile_count, num_rows};
  __syncthreads();
  for (int distance = 1; distance < kExpertsMax; distance *= 2) {
    const int3 before = expert >= distance ? sums[expert - distance] : int3{0, 0, 0};
    __syncthreads();
    sums[expert].x += before.x;
    sums[expert].y += before.y;
    sums[expert].z += before.z;
    __syncthreads();
  }
  const int first = sums[expert].x - count;
  const int first_tile = sums[expert].y - tile_count;
  const int first_row = sums[expert].z - num_rows;
  next[expert] = first;
  for (int i = 0; i < tile_count; ++i) {
    tiles[first_tile + i] = {expert, first + i * tile_tokens,
                             min(tile_tokens, count - i * tile_tokens),
                             first_row + i * tile_tokens};
  }
  if (expert == num_experts - 1) *num_tiles = sums[expert].y;
  __syncthreads();
  for (int i = threadIdx.x; i < num_slots; i += kGroupThreads) {
    slots[atomicAdd(&next[expert_ids[i]], 1)] = i;
  }
}

__global__ void __launch_bounds__(kCombineThreads)
    CombineKernel(const float* outputs, const float* expert_weights, int experts_per_token,
                  int hidden, float* out) {
  const int column = (blockIdx.x * kCombineThreads + threadIdx.x) * 4;
  if (column >= hidden) return;
  const size_t token = blockIdx.y;
  float4 sum = {};
  for (int k = 0; k < experts_per_token; ++k) {
    const size_t slot = token * experts_per_token + k;
    const float weight = expert_weights[slot];
    const float4 v = *reinterpret_cast<const float4*>(outputs + slot * hidden + column);
    sum.x = fmaf(weight, v.x, sum.x);
    sum.y = fmaf(weight, v.y, sum.y);
    sum.z = fmaf(weight, v.z, sum.z);
    sum.w = fmaf(weight, v.w, sum.w);
  }
  *reinterpret_cast<float4*>(out + token * hidden + column) = sum;
}

template <WeightFormat kFormat, Epilogue kEpilogue>
void LaunchWideGrouped(const Product& p, int tile_tokens, int num_tiles_max, cudaStream_t stream) {
  switch (tile_tokens) {
    case 16:
      return LaunchWideProduct<kFormat, 16, kEpilogue>(p, num_tiles_max, stream);
    case 32:
      return LaunchWideProduct<kFormat, 32, kEpilogue>(p, num_tiles_max, stream);
    default:
      return LaunchWideProduct<kFormat, 64, kEpilogue>(p, num_tiles_max, stream);
  }
}

template <WeightFormat kFormat>
void Run(const MoeParams& params, cudaStream_t stream) {
  const Experts& experts = params.experts;
  const int num_slots = params.num_tokens * params.experts_per_token;
  const int tile_tokens = TileTokens(num_slots, experts.num_experts);
  const auto num_tiles_max =
      static_cast<int>(NumTilesMax(num_slots, experts.num_experts, tile_tokens));
  const ExpertBytes bytes = PackedExpertBytes(kFormat, experts.ffn_width, experts.hidden);
  const Workspace w =
      Divide(params.workspace, experts, params.num_tokens, params.experts_per_token);
  const bool wide = tile_tokens > kStreamTokensMax;
  GroupKernel<<<1, kGroupThreads, 0, stream>>>(params.expert_ids, num_slots, experts.num_experts,
                                               tile_tokens, w.num_tiles, w.tiles, w.slots);
  CheckLaunch("GroupKernel");

  const auto one_segment = [](int num_cols) { return (NumSlabs(num_cols) + 1) / 2 * 2; };
  Product gate_up = {.weights = static_cast<const uint8_t*>(experts.gate_up),
                     .expert_bytes = bytes.gate_up,
                     .num_rows = 2 * experts.ffn_width,
                     .num_cols = experts.hidden,
                     .segment_slabs = one_segment(experts.hidden),
                     .x = params.x,
                     .num_tokens = num_slots,
                     .tiles = w.tiles,
                     .num_tiles = w.num_tiles,
                     .slots = w.slots,
                     .slots_per_input = params.experts_per_token,
                     .out = w.activations,
                     .partials = nullptr};
  if (wide) {
    if (experts.ffn_width % kSlabColumns != 0) {  // down's columns past the last must be zeros
      CheckCuda(cudaMemsetAsync(w.activations, 0, w.activation_bytes, stream), "cudaMemsetAsync");
    }
    ArrangeInputs<kFormat>(gate_up, tile_tokens, num_tiles_max, w.arranged, stream);
    LaunchWideGrouped<kFormat, Epilogue::kSwiGluArranged>(gate_up, tile_tokens, num_tiles_max,
                                                          stream);
  } else {
    LaunchStreamProduct<kFormat, Epilogue::kSwiGlu>(gate_up, stream);
  }

  Product down = gate_up;
  down.weights = static_cast<const uint8_t*>(experts.down);
  down.expert_bytes = bytes.down;
  down.num_rows = experts.hidden;
  down.num_cols = experts.ffn_width;
  down.segment_slabs = one_segment(experts.ffn_width);
  down.x = static_cast<const bf16*>(w.activations);
  down.slots_per_input = 1;
  down.out = w.outputs;
  if (wide) {
    LaunchWideGrouped<kFormat, Epilogue::kStore>(down, tile_tokens, num_tiles_max, stream);
  } else {
    LaunchStreamProduct<kFormat, Epilogue::kStore>(down, stream);
  }

  const dim3 grid(CeilDiv(experts.hidden, kCombineThreads * 4), params.num_tokens);
  CombineKernel<<<grid, kCombineThreads, 0, stream>>>(
      w.outputs, params.expert_weights, params.experts_per_token, experts.hidden, params.out);
  CheckLaunch("CombineKernel");
}

}  // namespace

void MixtureOfExperts(const MoeParams& params, cudaStream_t stream) {
  const Experts& experts = params.experts;
  KERNELS_CHECK(experts.num_experts, <=, kExpertsMax);
  KERNELS_CHECK(experts.hidden % 32, ==, 0);
  KERNELS_CHECK(experts.ffn_width % 32, ==, 0);
  KERNELS_CHECK(params.num_tokens, >=, 0);
  if (params.num_tokens == 0) return;
  switch (experts.format) {
    case WeightFormat::kFp8Block128:
      return Run<WeightFormat::kFp8Block128>(params, stream);
    case WeightFormat::kMxfp4:
      return Run<WeightFormat::kMxfp4>(params, stream);
    case WeightFormat::kBf16:
      KERNELS_CHECK(static_cast<int>(experts.format), !=, static_cast<int>(WeightFormat::kBf16));
  }
}

size_t MoeWorkspaceBytes(const Experts& experts, int experts_per_token, int num_tokens_max) {
  return Divide(nullptr, experts, num_tokens_max, experts_per_token).bytes;
}

}  // namespace ultraspeed::kernels::cuda
