// One head of a row of the fused projection: where it lies, and what becomes of its elements before
// they are rounded. Every kernel that turns projections into q, k and v computes exactly this.
#pragma once

#include "kernels/cuda/device/numbers.cuh"
#include "kernels/cuda/device/reduce.cuh"

namespace ultraspeed::kernels::cuda {

enum class HeadKind : uint8_t { kQuery, kKey, kValue };

// Columns of a row, as in ProjectParams.
struct HeadLayout {
  int group_stride;
  int group;  // q heads per kv head
  int num_kv_heads, qk_head_dim, v_head_dim;
};

// First column of a head of kv head `kv_head`; `q_head`: among the q heads of its group.
__device__ __forceinline__ int HeadColumn(const HeadLayout& layout, HeadKind kind, int kv_head,
                                          int q_head) {
  const int d_qk = layout.qk_head_dim;
  if (layout.group_stride > 0) {
    const int begin = kv_head * layout.group_stride;
    if (kind == HeadKind::kQuery) return begin + q_head * d_qk;
    return begin + layout.group * d_qk + (kind == HeadKind::kValue ? d_qk : 0);
  }
  if (kind == HeadKind::kQuery) return (kv_head * layout.group + q_head) * d_qk;
  const int keys = layout.num_kv_heads * layout.group * d_qk;
  return kind == HeadKind::kKey ? keys + kv_head * d_qk
                                : keys + layout.num_kv_heads * d_qk + kv_head * layout.v_head_dim;
}

// The norm's factor of a head. A lane has added fmaf(x, x, squares) over its dims lane, lane + 32,
// ..., in this order from 0; every lane of the warp calls it.
__device__ __forceinline__ float HeadNormScale(float squares, int dim, float epsilon) {
  return NormScale(WarpReduce(squares, AddFloats()), dim, epsilon);
}

// Rotary: element x of the first or second half, with its partner in the other half.
__device__ __forceinline__ float Rotate(float x, float partner, float cosine, float sine,
                                        bool first) {
  const float product = __fmul_rn(partner, sine);
  return fmaf(x, cosine, first ? -product : product);
}

__device__ __forceinline__ float ScaleValue(float x, float value_scale) {
  return __fmul_rn(x, value_scale);
}

}  // namespace ultraspeed::kernels::cuda
