// Linear: chooses the form of the product and adds the segments that it left apart.
//
// Both forms give the same bits (weight_layout.h), so the choice may depend on the number of
// tokens.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/stream_product.cuh"
#include "kernels/cuda/wide_product.cuh"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kSplitTokensMax = 128;  // more tokens fill the GPU without splitting sums
constexpr int kThreads = 256;
constexpr size_t kAlignment = 256;

Product ProductOf(const Matrix& w, const bf16* x, int num_tokens, float* out) {
  return {.weights = static_cast<const uint8_t*>(w.data),
          .expert_bytes = 0,
          .num_rows = w.num_rows,
          .num_cols = w.num_cols,
          .segment_slabs = SegmentSlabs(w.num_cols),
          .x = x,
          .num_tokens = num_tokens,
          .tiles = nullptr,
          .num_tiles = nullptr,
          .slots = nullptr,
          .slots_per_input = 1,
          .out = out,
          .partials = nullptr};
}

int WideTileTokens(int num_tokens) {
  if (num_tokens <= 16) return 16;
  if (num_tokens <= 32) return 32;
  return num_tokens <= 64 ? 64 : 128;
}

// Whether the segments of the sums go to the workspace.
template <WeightFormat kFormat>
bool LeavesSegments(const Product& p) {
  if (NumSegments(p) == 1 || p.num_tokens == 0) return false;
  if (p.num_tokens <= kStreamTokensMax) {
    return PlanStream<kFormat>(p).num_groups_per_tile > 1;
  }
  const int blocks = CeilDiv(NumRowTiles(p.num_rows), kWideRowTiles) *
                     CeilDiv(p.num_tokens, WideTileTokens(p.num_tokens));
  return p.num_tokens <= kSplitTokensMax && blocks <= NumMultiprocessors();
}

__global__ void AddSegmentsKernel(const float* partials, int num_segments, int64_t count,
                                  float* out) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  float sum = partials[i];
  for (int s = 1; s < num_segments; ++s) sum = __fadd_rn(sum, partials[s * count + i]);
  out[i] = sum;
}

// The wide form's inputs lie behind the segments.
size_t SegmentBytes(const Product& p) {
  if (NumSegments(p) == 1 || p.num_tokens > kSplitTokensMax) return 0;
  const size_t bytes = size_t{4} * NumSegments(p) * p.num_tokens * p.num_rows;
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}
size_t ArrangedBytes(const Product& p) {
  return p.num_tokens <= kStreamTokensMax ? 0 : WideInputBytes(p.num_tokens, 1, p.num_cols);
}

template <WeightFormat kFormat>
void MultiplyWide(Product p, void* workspace, cudaStream_t stream) {
  const int tile_tokens = WideTileTokens(p.num_tokens);
  const int num_tiles = CeilDiv(p.num_tokens, tile_tokens);
  ArrangeInputs<kFormat>(p, tile_tokens, num_tiles,
                         static_cast<uint8_t*>(workspace) + SegmentBytes(p), stream);
  switch (tile_tokens) {
    case 16:
      return LaunchWideProduct<kFormat, 16, Epilogue::kStore>(p, num_tiles, stream);
    case 32:
      return LaunchWideProduct<kFormat, 32, Epilogue::kStore>(p, num_tiles, stream);
    case 64:
      return LaunchWideProduct<kFormat, 64, Epilogue::kStore>(p, num_tiles, stream);
    default:
      return LaunchWideProduct<kFormat, 128, Epilogue::kStore>(p, num_tiles, stream);
  }
}

template <WeightFormat kFormat>
void Multiply(Product p, void* workspace, cudaStream_t stream) {
  const bool leaves_segments = LeavesSegments<kFormat>(p);
  if (leaves_segments) p.partials = static_cast<float*>(workspace);
  if (p.num_tokens <= kStreamTokensMax) {
    LaunchStreamProduct<kFormat, Epilogue::kStore>(p, stream);
  } else {
    MultiplyWide<kFormat>(p, workspace, stream);
  }
  if (!leaves_segments) return;
  const int64_t count = int64_t{p.num_tokens} * p.num_rows;
  AddSegmentsKernel<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0,
                      stream>>>(p.partials, NumSegments(p), count, static_cast<float*>(p.out));
  CheckLaunch("AddSegmentsKernel");
}

}  // namespace

void Linear(const Matrix& w, const bf16* x, int num_tokens, float* out, void* workspace,
            cudaStream_t stream) {
  KERNELS_CHECK(num_tokens, >=, 0);
  if (num_tokens == 0) return;
  const Product p = ProductOf(w, x, num_tokens, out);
  switch (w.format) {
    case WeightFormat::kBf16:
      return Multiply<WeightFormat::kBf16>(p, workspace, stream);
    case WeightFormat::kFp8Block128:
      return Multiply<WeightFormat::kFp8Block128>(p, workspace, stream);
    case WeightFormat::kMxfp4:
      return Multiply<WeightFormat::kMxfp4>(p, workspace, stream);
  }
}

size_t LinearWorkspaceBytes(const Matrix& w, int num_tokens_max) {
  const auto bytes = [&](int num_tokens) {
    const Product p = ProductOf(w, nullptr, num_tokens, nullptr);
    return SegmentBytes(p) + ArrangedBytes(p);
  };
  return std::max(bytes(std::min(num_tokens_max, kSplitTokensMax)), bytes(num_tokens_max));
}

}  // namespace ultraspeed::kernels::cuda
