// The arithmetic of attention: softmax and weighted values of the 16 (row, q head) pairs of a warp
// over a chunk of keys, the one way to merge results over disjoint keys, and what makes them the
// output.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/device/copy.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/reduce.cuh"
#include "kernels/cuda/kv_cache.cuh"

namespace ultraspeed::kernels::cuda {

inline constexpr int kChunkKeys = kPageTokens;
inline constexpr int kSegmentKeys = 256;  // of a full layer, at absolute positions
inline constexpr int kSpanKeys = 8192;
inline constexpr int kValueDim = 128;
inline constexpr int kWarpPairs = 16;      // rows of an mma tile
inline constexpr float kNoScore = -1e30f;  // the maximum before any key: finite, no special cases
inline constexpr float kLog2E = 1.4426950408889634f;

// Softmax works in powers of two: the factor of a product of q and k.
__host__ __device__ inline float ScoreScale(float score_scale) { return score_scale * kLog2E; }

__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Softmax state of one (row, head) over some keys: their largest score and, relative to it, the sum
// of weights; the weighted values lie elsewhere, in the same scale.
struct Softmax {
  float max;
  float sum;
};

// What moves a sum or value to a new maximum of the scores.
__device__ inline float Rescale(float max, float new_max, float scale) {
  return Exp2(__fmul_rn(max - new_max, scale));
}
// Weight of a score relative to the maximum: Weight(score, scale, WeightShift(max, scale)).
__device__ inline float WeightShift(float max, float scale) { return __fmul_rn(-max, scale); }
__device__ inline float Weight(float score, float scale, float shift) {
  return Exp2(fmaf(score, scale, shift));
}

// How to merge the states `earlier` and `later` of disjoint keys: values are
// earlier * a + later * b, see MergeValue.
struct Factors {
  float a;
  float b;
};
__device__ inline Softmax Merge(Softmax earlier, Softmax later, float scale, Factors& factors) {
  const float max = fmaxf(earlier.max, later.max);
  factors.a = Rescale(earlier.max, max, scale);
  factors.b = Rescale(later.max, max, scale);
  return {max, fmaf(later.sum, factors.b, __fmul_rn(earlier.sum, factors.a))};
}
__device__ inline float MergeValue(float earlier, float later, Factors factors) {
  return fmaf(later, factors.b, __fmul_rn(earlier, factors.a));
}

// Result of one row and q head over one part of its keys, before the sink.
struct alignas(16) AttentionPartial {
  float values[kValueDim];
  Softmax state;
};

// The logit of a head that joins the sum, if there is one.
struct Sink {
  bool exists;
  float logit;
};
__device__ inline Sink SinkOf(const float* sinks, int head) {
  return {sinks != nullptr, sinks == nullptr ? 0.0f : sinks[head]};
}

// What turns weighted values into the output: 1 / sum, with the sink in the sum.
__device__ inline float OutputFactor(Softmax state, float scale, Sink sink) {
  float sum = state.sum;
  float factor = 1.0f;
  if (sink.exists) {
    const float score = __fmul_rn(state.max, scale);
    const float sink_score = __fmul_rn(sink.logit, kLog2E);
    const float max = fmaxf(score, sink_score);
    factor = Exp2(score - max);
    sum = fmaf(sum, factor, Exp2(sink_score - max));
  }
  return sum > 0.0f ? factor / sum : 0.0f;
}
// + 0: a negative zero would tell who computed which part.
__device__ inline uint32_t OutputPair(float x, float y, float factor) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(fmaf(x, factor, 0.0f), fmaf(y, factor, 0.0f));
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Largest of a pair's scores; a lane has the larger of its own.
__device__ inline float ScoreMax(float max) {
  max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 1));
  return fmaxf(max, __shfl_xor_sync(kAllLanes, max, 2));
}
// Sum of the weights of a chunk, whose lanes each have their share: that of the first step of 16
// keys, plus the second's, and so on.
__device__ inline float WeightSum(float sum) {
  sum = __fadd_rn(sum, __shfl_xor_sync(kAllLanes, sum, 1));
  return __fadd_rn(sum, __shfl_xor_sync(kAllLanes, sum, 2));
}
// A lane's share of a step: its weights of a pair in the two tiles of 8 keys.
__device__ inline float StepSum(float a, float b, float c, float d) {
  return __fadd_rn(__fadd_rn(a, b), __fadd_rn(c, d));
}

// Weights as the sum of two bf16 terms each.
__device__ inline void SplitWeights(float x, float y, uint32_t& high, uint32_t& low) {
  const __nv_bfloat162 h = __floats2bfloat162_rn(x, y);
  high = *reinterpret_cast<const uint32_t*>(&h);
  const __nv_bfloat162 l = __floats2bfloat162_rn(x - __uint_as_float(high << 16),
                                                 y - __uint_as_float(high & 0xffff0000u));
  low = *reinterpret_cast<const uint32_t*>(&l);
}

// What a warp has of its 16 pairs over the chunks so far. A lane holds pairs lane / 4 and lane / 4
// + 8 (index i), columns 2 * (lane % 4) + {0, 1} of every 8.
struct WarpResult {
  float values[kValueDim / 8][4];
  Softmax state[2];

  __device__ void Reset() {
#pragma unroll
    for (int n = 0; n < kValueDim / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) values[n][j] = 0.0f;
    }
    state[0] = state[1] = {kNoScore, 0.0f};
  }
};

// Scores of a chunk of keys [begin, begin + 64), of which pair i sees those from first[i] to end[i]
// -> their weights. Joins their sum to the state; `factors` does the same to values.
using ChunkScores = float[kChunkKeys / 8][4];
__device__ inline void WeighScores(ChunkScores& p, int begin, const int (&first)[2],
                                   const int (&end)[2], float scale, Softmax (&state)[2],
                                   Factors (&factors)[2]) {
  constexpr int kKeyTiles = kChunkKeys / 8;
  const int lane = threadIdx.x % kWarpLanes;
  const bool all_visible = begin >= first[0] && begin >= first[1] && begin + kChunkKeys <= end[0] &&
                           begin + kChunkKeys <= end[1];
  if (!__all_sync(kAllLanes, all_visible)) {
    constexpr float kMinusInfinity = -__builtin_inff();
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int key = begin + n * 8 + lane % 4 * 2 + j % 2;
        if (key < first[j / 2] || key >= end[j / 2]) p[n][j] = kMinusInfinity;
      }
    }
  }
  // Both pairs' steps side by side, and maxima as trees: a chain of either would be most of the
  // time.
  float max[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float maxima[kKeyTiles];
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) maxima[n] = fmaxf(p[n][2 * i], p[n][2 * i + 1]);
#pragma unroll
    for (int apart = kKeyTiles / 2; apart > 0; apart /= 2) {
#pragma unroll
      for (int n = 0; n < apart; ++n) maxima[n] = fmaxf(maxima[n], maxima[n + apart]);
    }
    max[i] = fmaxf(maxima[0], kNoScore);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) max[i] = ScoreMax(max[i]);
  const float shift[2] = {WeightShift(max[0], scale), WeightShift(max[1], scale)};
  float sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (int n = 0; n < kKeyTiles; n += 2) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float& weight = p[n + j / 2][2 * i + j % 2];
        weight = Weight(weight, scale, shift[i]);
      }
      sum[i] = __fadd_rn(
          sum[i], StepSum(p[n][2 * i], p[n][2 * i + 1], p[n + 1][2 * i], p[n + 1][2 * i + 1]));
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    state[i] = Merge(state[i], {max[i], WeightSum(sum[i])}, scale, factors[i]);
  }
}

// Weights of a chunk as operands of the product with its values, 16 keys a step.
struct ChunkWeights {
  uint32_t high[kChunkKeys / 16][4], low[kChunkKeys / 16][4];

  __device__ explicit ChunkWeights(const ChunkScores& p) {
#pragma unroll
    for (int step = 0; step < kChunkKeys / 16; ++step) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        SplitWeights(p[2 * step + j / 2][j % 2 * 2], p[2 * step + j / 2][j % 2 * 2 + 1],
                     high[step][j], low[step][j]);
      }
    }
  }
};

// The 16 pairs of one warp that multiplies by itself: their queries, and the result.
template <int kDim>
struct WarpTile : WarpResult {
  uint32_t q[kDim / 16][4];
  int first_key[2];  // visible keys of the cache: [first, end)
  int end_key[2];

  // One chunk of keys [begin, begin + 64), visible to pair i from first[i] to end[i].
  __device__ void Attend(const bf16* k_tile, const bf16* v_tile, int begin, const int (&first)[2],
                         const int (&end)[2], float scale) {
    constexpr int kKeyTiles = kChunkKeys / 8, kSteps = kChunkKeys / 16;
    const int lane = threadIdx.x % kWarpLanes;
    ChunkScores p;
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) p[n][j] = 0.0f;
    }
    // Scores. Matrix m = lane / 8 of a load: keys 8 * (m / 2) + .., dims 8 * (m % 2) + ..
    {
      const int key = (lane / 16) * 8 + lane % 8;  // + 16 per pair of tiles: same key % 8
      const uint32_t row = SharedAddress(k_tile) + key * kPartColumns * 2;
      const int half = lane / 8 % 2;
#pragma unroll
      for (int step = 0; step < kDim / 16; ++step) {
        const uint32_t unit = step / 4 * kPartBytes + ((step % 4 * 2 + half) ^ (lane % 8)) * 16;
#pragma unroll
        for (int n = 0; n < kKeyTiles; n += 2) {
          uint32_t b[4];
          LoadMatrices(b, row + n * 8 * kPartColumns * 2 + unit);
          Mma(p[n], q[step], b[0], b[1]);
          Mma(p[n + 1], q[step], b[2], b[3]);
        }
      }
    }
    Factors factors[2];
    WeighScores(p, begin, first, end, scale, state, factors);
    const ChunkWeights weights(p);
    // Values. Matrix m = lane / 8 of a transposed load: keys 8 * (m % 2) + .., dims 8 * (m / 2) +
    // ..
    const int key = lane / 8 % 2 * 8 + lane % 8;
    const uint32_t row = SharedAddress(v_tile) + key * kPartColumns * 2;
#pragma unroll
    for (int n = 0; n < kValueDim / 8; n += 2) {
      float chunk[2][4] = {};
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t b[4];
        LoadMatricesTransposed(b, row + n / kPartUnits * kPartBytes + step * 16 * kPartColumns * 2 +
                                      ((n % kPartUnits + lane / 16) ^ (lane % 8)) * 16);
        Mma(chunk[0], weights.high[step], b[0], b[1]);
        Mma(chunk[1], weights.high[step], b[2], b[3]);
        Mma(chunk[0], weights.low[step], b[0], b[1]);
        Mma(chunk[1], weights.low[step], b[2], b[3]);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        values[n][j] = MergeValue(values[n][j], chunk[0][j], factors[j / 2]);
        values[n + 1][j] = MergeValue(values[n + 1][j], chunk[1][j], factors[j / 2]);
      }
    }
  }
};

}  // namespace ultraspeed::kernels::cuda
