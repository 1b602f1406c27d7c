// From one head of a fused projection to what attention reads: head norm, rotary, value scale,
// rounding, and the place in the cache. One warp per head; lane l holds dims l, l + 32, ...
#pragma once

#include <cuda_fp8.h>

#include "kernels/cuda/kv_cache.cuh"
#include "kernels/cuda/qkv_head.cuh"

namespace ultraspeed::kernels::cuda {

// One head of one row, and what is done to it on the way out.
struct Head {
  const float* in;      // [dim]; read past L1: other blocks of the resident kernel write it anew
  const float* norm;    // [dim] or null
  const float* cosine;  // [rotary / 2], sines follow; null: no rotary
  int dim;
  int rotary_dims;
  float factor;  // value scale
};

__device__ inline float HeadScale(const Head& head, float epsilon) {
  float squares = 0.0f;
  for (int d = threadIdx.x % kWarpLanes; d < head.dim; d += kWarpLanes) {
    const float x = __ldcg(head.in + d);
    squares = fmaf(x, x, squares);
  }
  return HeadNormScale(squares, head.dim, epsilon);
}

// Element d after norm, rotary and factor. `scale` is HeadScale, used if there is a norm.
__device__ inline float HeadElement(const Head& head, int d, float scale) {
  const auto normed = [&](int i) {
    const float x = __ldcg(head.in + i);
    return head.norm == nullptr ? x : NormElement(x, scale, head.norm[i]);
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
__device__ inline void StoreCached(void* cache, KvFormat format, int64_t tile, int row, int d,
                                   int dim, float x) {
  if (format == KvFormat::kBf16) {
    static_cast<bf16*>(cache)[tile + TileElement(row, d)] = RoundToBf16(x);
  } else {
    static_cast<uint8_t*>(cache)[tile + row * dim + d] =
        __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
  }
}

}  // namespace ultraspeed::kernels::cuda
