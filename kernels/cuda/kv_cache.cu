// From the fused projection to attention's inputs: head norm, rotary, value scale, rounding, and
// the write into the cache.
//
// One warp per head of one row; lane l holds dims l, l + 32, ... The grid covers rows_max rows of
// every sequence, so a captured graph serves any lengths. Memory bound, a few kilobytes a row.
#include <cuda_fp8.h>

#include "kernels/check.h"
#include "kernels/cuda/kv_cache.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/qkv_head.cuh"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kWarps = 8;

// One head of one row, and what is done to it on the way out.
struct Head {
  const float* in;      // [dim]
  const float* norm;    // [dim] or null
  const float* cosine;  // [rotary / 2], sines follow; null: no rotary
  int dim;
  int rotary_dims;
  float factor;  // value scale
};

__device__ float HeadScale(const Head& head, float epsilon) {
  float squares = 0.0f;
  for (int d = threadIdx.x % kWarpLanes; d < head.dim; d += kWarpLanes) {
    squares = fmaf(head.in[d], head.in[d], squares);
  }
  return HeadNormScale(squares, head.dim, epsilon);
}

// Element d after norm, rotary and factor. `scale` is HeadScale, used if there is a norm.
__device__ float HeadElement(const Head& head, int d, float scale) {
  const auto normed = [&](int i) {
    return head.norm == nullptr ? head.in[i] : NormElement(head.in[i], scale, head.norm[i]);
  };
  const float x = normed(d);
  if (head.cosine == nullptr) return ScaleValue(x, head.factor);
  const int half = head.rotary_dims / 2;
  if (d >= head.rotary_dims) return x;
  const bool first = d < half;
  const int i = first ? d : d - half;
  return Rotate(x, normed(first ? d + half : d - half), head.cosine[i], head.cosine[half + i],
                first);
}

// Row `row` of tile [64, dim] in the cache's format.
__device__ void StoreCached(void* cache, KvFormat format, int64_t tile, int row, int d, int dim,
                            float x) {
  if (format == KvFormat::kBf16) {
    static_cast<bf16*>(cache)[tile + SwizzledElement(row, d, dim)] = RoundToBf16(x);
  } else {
    static_cast<uint8_t*>(cache)[tile + row * dim + d] =
        __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
  }
}

__global__ void __launch_bounds__(kWarps* kWarpLanes) ProjectKernel(ProjectParams params) {
  const Sequences& sequences = params.sequences;
  const int s = static_cast<int>(blockIdx.z);
  const int row = static_cast<int>(blockIdx.y);  // of the sequence
  const int num_q = params.num_q_heads, num_kv = params.num_kv_heads;
  const int index = static_cast<int>(blockIdx.x) * kWarps + threadIdx.x / kWarpLanes;
  if (row >= sequences.num_rows[s] || index >= num_q + 2 * num_kv) return;
  const int64_t t = sequences.first_row[s] + row;
  const int64_t position = sequences.position[s] + row;

  const bool is_q = index < num_q;
  const bool is_v = index >= num_q + num_kv;
  const int h = is_q ? index : (index - num_q) % num_kv;
  const int d_qk = params.qk_head_dim, d_v = params.v_head_dim;
  const HeadKind kind = is_q ? HeadKind::kQuery : is_v ? HeadKind::kValue : HeadKind::kKey;
  const int group = num_q / num_kv;  // 0: no q heads
  const int column = HeadColumn({params.group_stride, group, num_kv, d_qk, d_v}, kind,
                                is_q ? h / group : h, is_q ? h % group : 0);

  Head head = {};
  head.in = params.qkv + t * params.row_width + column;
  head.dim = is_v ? d_v : d_qk;
  head.norm = is_q ? params.q_norm : is_v ? nullptr : params.k_norm;
  head.cosine = is_v ? nullptr : params.rope + position * params.rotary_dims;
  head.rotary_dims = params.rotary_dims;
  head.factor = params.value_scale;
  const float scale = head.norm == nullptr ? 1.0f : HeadScale(head, params.epsilon);

  bf16* dense = nullptr;
  if (is_q && params.q != nullptr) dense = params.q + (t * num_q + h) * d_qk;
  if (!is_q && !is_v && params.block_k != nullptr) dense = params.block_k + (t * num_kv + h) * d_qk;
  if (is_v && params.block_v != nullptr) dense = params.block_v + (t * num_kv + h) * d_v;
  const bool kept = params.num_rows_kept == nullptr || row < params.num_rows_kept[s];
  void* cache = is_q || !kept ? nullptr : is_v ? params.cache.v : params.cache.k;
  const int64_t tile =
      cache == nullptr ? 0
                       : TileOffset(PageOf(sequences, params.place, params.ring_pages, s, position),
                                    h, num_kv, head.dim);
  for (int d = threadIdx.x % kWarpLanes; d < head.dim; d += kWarpLanes) {
    const float x = HeadElement(head, d, scale);
    if (dense != nullptr) dense[d] = RoundToBf16(x);
    if (cache != nullptr) {
      StoreCached(cache, params.cache.format, tile, static_cast<int>(position % kPageTokens), d,
                  head.dim, x);
    }
  }
}

}  // namespace

size_t KvCacheBytes(KvFormat format, int64_t num_pages, int page_tokens, int num_kv_heads,
                    int head_dim) {
  KERNELS_CHECK(page_tokens, ==, kPageTokens);
  return static_cast<size_t>(num_pages) * page_tokens * num_kv_heads * head_dim *
         (format == KvFormat::kBf16 ? sizeof(bf16) : sizeof(uint8_t));
}

void ProjectQkv(const ProjectParams& params, int num_tokens, cudaStream_t stream) {
  const Sequences& sequences = params.sequences;
  KERNELS_CHECK(params.num_kv_heads, >, 0);
  KERNELS_CHECK(params.rotary_dims, <=, params.qk_head_dim);
  KERNELS_CHECK(params.rotary_dims % 2, ==, 0);
  if (params.group_stride > 0) KERNELS_CHECK(params.num_q_heads % params.num_kv_heads, ==, 0);
  if (params.cache.k != nullptr) {
    KERNELS_CHECK(params.cache.page_tokens, ==, kPageTokens);
    KERNELS_CHECK(params.cache.num_kv_heads, ==, params.num_kv_heads);
    KERNELS_CHECK(params.cache.qk_head_dim, ==, params.qk_head_dim);
    KERNELS_CHECK(params.cache.v_head_dim, ==, params.v_head_dim);
    KERNELS_CHECK(params.qk_head_dim % 64, ==, 0);
    KERNELS_CHECK(params.v_head_dim % 64, ==, 0);
  }
  if (num_tokens == 0 || sequences.num_sequences == 0 || sequences.rows_max == 0) return;
  const int num_heads = params.num_q_heads + 2 * params.num_kv_heads;
  const dim3 grid(CeilDiv(num_heads, kWarps), sequences.rows_max, sequences.num_sequences);
  ProjectKernel<<<grid, kWarps * kWarpLanes, 0, stream>>>(params);
  CheckLaunch("ProjectQkv");
}

}  // namespace ultraspeed::kernels::cuda
