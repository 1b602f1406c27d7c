// Rows on their way into a product and out of it: the norm or activation that a product's input
// passes, the residual stream with its sums of squares, the sum over ranks, the embeddings.
//
// The same scalar operations in the same order as kernels/cuda/rows.cu.
#pragma once

#include "kernels/cuda/device/fragments.cuh"
#include "kernels/cuda/device/numbers.cuh"
#include "kernels/cuda/device/reduce.cuh"
#include "kernels/cuda/resident/block.cuh"

namespace ultraspeed::kernels::cuda::resident {

// ---- In

// The lane's columns of one block of two slabs, for token g: eight of every 32.
using InputFragments = uint4[8];

__device__ __forceinline__ int StagingStride(int columns) { return columns * 2 + 64; }

__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  return RoundToBf16(low) | uint32_t{RoundToBf16(high)} << 16;
}

// Eight columns of a row as bf16, from whatever the phase's input is.
struct EightFloats {
  float4 low, high;
};
__device__ __forceinline__ EightFloats LoadEight(const float* p) {
  const auto* const q = reinterpret_cast<const float4*>(p);
  return {__ldcg(q), __ldcg(q + 1)};
}
__device__ __forceinline__ uint4 GainedEight(uint4 x, uint32_t gain) {
  const auto times = [&](uint32_t pair) { return MultiplyBf16x2(pair, gain); };
  return {times(x.x), times(x.y), times(x.z), times(x.w)};
}
__device__ __forceinline__ uint4 NormEight(EightFloats x, float scale, EightFloats w) {
  return {PackBf16(NormElement(x.low.x, scale, w.low.x), NormElement(x.low.y, scale, w.low.y)),
          PackBf16(NormElement(x.low.z, scale, w.low.z), NormElement(x.low.w, scale, w.low.w)),
          PackBf16(NormElement(x.high.x, scale, w.high.x), NormElement(x.high.y, scale, w.high.y)),
          PackBf16(NormElement(x.high.z, scale, w.high.z), NormElement(x.high.w, scale, w.high.w))};
}
__device__ __forceinline__ uint4 SwiGluEight(EightFloats gate, EightFloats up) {
  const auto pair = [](float g0, float u0, float g1, float u1) {
    return SwiGluProduct(g0, u0) | uint32_t{SwiGluProduct(g1, u1)} << 16;
  };
  return {pair(gate.low.x, up.low.x, gate.low.y, up.low.y),
          pair(gate.low.z, up.low.z, gate.low.w, up.low.w),
          pair(gate.high.x, up.high.x, gate.high.y, up.high.y),
          pair(gate.high.z, up.high.z, gate.high.w, up.high.w)};
}

// Scale of each row from the sums of squares of its tiles: warp t makes row t's.
__device__ __forceinline__ void MakeScales(const Block& block, const Phase& phase) {
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  if (warp >= kRowsMax) return;
  const int num_tiles = block.program().hidden / 16;
  const float* const squares = phase.squares + warp * num_tiles;
  float sum = 0.0f;
#pragma unroll 12
  for (int tile = lane; tile < num_tiles; tile += kWarpLanes) {
    sum = __fadd_rn(sum, __ldcg(squares + tile));
  }
  sum = WarpReduce(sum, AddFloats());
  if (lane == 0) block.shared().scale[warp] = NormScale(sum, block.program().hidden, phase.epsilon);
}

// Waits for the phase's input and brings this thread block's share of its columns into the staging
// area: kRowsMax rows of bf16, with the format's gain. All consumers call it.
static __device__ __noinline__ void StageInput(Block block, int which, Share share) {
  const Phase& phase = block.PhaseOf(Role::kConsumer, which);
  constexpr int kPiecesMax =
      kRowsMax * kShareBlocksMax * 2 * kSlabColumns / 8 / kConsumerThreads;  // of a thread
  const int columns = ShareSlabs(share, phase.num_slabs) * kSlabColumns;
  const int first_column = share.first * 2 * kSlabColumns;
  const int row_pieces = columns / 8, num_pieces = kRowsMax * row_pieces;
  const int stride = StagingStride(columns);
  const auto row_of = [&](int piece) { return piece / row_pieces; };
  const auto column_of = [&](int piece) { return first_column + piece % row_pieces * 8; };
  constexpr uint32_t kOne = 0x3f803f80u;
  const uint32_t gain = HasInputGain(phase.format) ? kInputGain : kOne;
  const auto store = [&](int piece, uint4 v) {
    *reinterpret_cast<uint4*>(block.shared().staging + row_of(piece) * stride +
                              piece % row_pieces * 16) = GainedEight(v, gain);
  };
  const int thread = threadIdx.x;
  EightFloats weights[kPiecesMax];  // of the norm, requested before the wait
#pragma unroll
  for (int i = 0; i < kPiecesMax; ++i) {
    const int piece = thread + i * kConsumerThreads;
    if (phase.input == InputKind::kNorm && piece < num_pieces) {
      const auto* const w = reinterpret_cast<const float4*>(phase.norm_weight + column_of(piece));
      weights[i] = {__ldg(w), __ldg(w + 1)};
    }
  }
  if (thread == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();

  if (phase.input == InputKind::kBf16) {
    for (int piece = thread; piece < num_pieces; piece += kConsumerThreads) {
      const auto* const x = static_cast<const bf16*>(phase.x) +
                            static_cast<int64_t>(row_of(piece)) * phase.x_stride + column_of(piece);
      store(piece, __ldcg(reinterpret_cast<const uint4*>(x)));
    }
  } else if (phase.input == InputKind::kSwiGlu) {
    for (int piece = thread; piece < num_pieces; piece += kConsumerThreads) {
      const float* const gate = static_cast<const float*>(phase.x) +
                                static_cast<int64_t>(row_of(piece)) * phase.x_stride +
                                column_of(piece);
      store(piece, SwiGluEight(LoadEight(gate), LoadEight(gate + phase.x_stride / 2)));
    }
  } else {
    EightFloats x[kPiecesMax];
#pragma unroll
    for (int i = 0; i < kPiecesMax; ++i) {
      const int piece = thread + i * kConsumerThreads;
      if (piece < num_pieces) {
        x[i] = LoadEight(static_cast<const float*>(phase.x) +
                         static_cast<int64_t>(row_of(piece)) * phase.x_stride + column_of(piece));
      }
    }
    MakeScales(block, phase);
    NamedBarrier<kConsumerBarrier, kConsumerThreads>();
#pragma unroll
    for (int i = 0; i < kPiecesMax; ++i) {
      const int piece = thread + i * kConsumerThreads;
      if (piece < num_pieces) {
        store(piece, NormEight(x[i], block.shared().scale[row_of(piece)], weights[i]));
      }
    }
  }
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
}

// The warp's block of two slabs out of the staging area.
__device__ __forceinline__ void LoadFragments(const Block& block, int part, int num_slabs,
                                              int columns, int lane, InputFragments& x) {
  const uint8_t* const from = block.shared().staging + lane / 4 * StagingStride(columns) +
                              part * 4 * kSlabColumns + lane % 4 * 16;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    x[j] = j / 4 < num_slabs ? *reinterpret_cast<const uint4*>(from + j * 64) : uint4{0, 0, 0, 0};
  }
}

// ---- Out

constexpr uint32_t kNotArrived = 0x80008000u;  // two negative zeros, which are never sent

// A finished tile of the residual stream, by one warp: v.x, v.y belong to column tile * 16 + g of
// rows 2 t, 2 t + 1; v.z, v.w to column + 8. Writes values, sums of squares and tap.
__device__ __forceinline__ void WriteResidualTile(const Phase& phase, int hidden, int tile,
                                                  int lane, float4 v) {
  const int g = lane / 4, row = lane % 4 * 2, column = tile * 16 + g;
  float* const low = phase.residual + static_cast<int64_t>(row) * hidden + column;
  float* const high = low + hidden;
  low[0] = v.x;
  high[0] = v.y;
  low[8] = v.z;
  high[8] = v.w;
  float even = __fmaf_rn(v.z, v.z, __fmul_rn(v.x, v.x));
  float odd = __fmaf_rn(v.w, v.w, __fmul_rn(v.y, v.y));
#pragma unroll
  for (int mask = 4; mask <= 16; mask *= 2) {
    even = __fadd_rn(even, __shfl_xor_sync(kAllLanes, even, mask));
    odd = __fadd_rn(odd, __shfl_xor_sync(kAllLanes, odd, mask));
  }
  if (g == 0) {
    float* const squares = phase.residual_squares + row * (hidden / 16) + tile;
    squares[0] = even;
    squares[hidden / 16] = odd;
  }
  if (phase.tap != nullptr) {
    bf16* const tap = phase.tap + static_cast<int64_t>(row) * phase.tap_stride + column;
    tap[0] = RoundToBf16(v.x);
    tap[8] = RoundToBf16(v.z);
    tap[phase.tap_stride] = RoundToBf16(v.y);
    tap[phase.tap_stride + 8] = RoundToBf16(v.w);
  }
}

__device__ __forceinline__ float4 ReadResidualTile(const Phase& phase, int hidden, int tile,
                                                   int lane) {
  const float* const low =
      phase.residual + static_cast<int64_t>(lane % 4 * 2) * hidden + tile * 16 + lane / 4;
  const float* const high = low + hidden;
  return {__ldcg(low), __ldcg(high), __ldcg(low + 8), __ldcg(high + 8)};
}

__device__ __forceinline__ float4 AddTiles(float4 a, float4 b) {
  return {__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w)};
}

// The sum of all ranks' parts of a tile, each rounded to bf16. `operation` counts the sums since
// the kernel's start; three inboxes take turns, and the one of the sum before is emptied, which no
// rank can fill before it has seen this sum's data of ours.
__device__ __forceinline__ float4 SumOverRanks(const Block& block, uint32_t operation, int tile,
                                               int lane, float4 v) {
  const Collective& ranks = block.program().collective;
  const auto word = [](float a, float b) {
    uint32_t w = PackBf16(a, b);
    if ((w & 0xffffu) == 0x8000u) w &= 0xffff0000u;
    if ((w >> 16) == 0x8000u) w &= 0x0000ffffu;
    return w;
  };
  const uint2 mine = {word(v.x, v.y), word(v.z, v.w)};
  const size_t inbox_words = ranks.num_ranks * ranks.inbox_rank_words;
  const size_t at = operation % 3 * inbox_words + static_cast<size_t>(tile) * 32 + lane;
  const size_t emptied = (operation + 2) % 3 * inbox_words + static_cast<size_t>(tile) * 32 + lane;
  for (int r = 0; r < ranks.num_ranks; ++r) {
    asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(ranks.push[r] + at), "r"(mine.x),
                 "r"(mine.y)
                 : "memory");
  }
  const auto place = [&](int r) { return ranks.inbox + r * ranks.inbox_rank_words; };
  uint2 parts[kRanksMax];
  block.Wait(WaitsFor::kPeers, [&] {  // all requested before the first is looked at
    bool arrived = true;
#pragma unroll
    for (int r = 0; r < kRanksMax; ++r) {
      if (r >= ranks.num_ranks) break;
      asm volatile("ld.volatile.global.v2.u32 {%0, %1}, [%2];"
                   : "=r"(parts[r].x), "=r"(parts[r].y)
                   : "l"(place(r) + at)
                   : "memory");
    }
#pragma unroll
    for (int r = 0; r < kRanksMax; ++r) {
      if (r >= ranks.num_ranks) break;
      arrived = arrived && parts[r].x != kNotArrived && parts[r].y != kNotArrived;
    }
    return arrived;
  });
  float4 sum = {};
#pragma unroll
  for (int r = 0; r < kRanksMax; ++r) {
    if (r >= ranks.num_ranks) break;
    const uint2 part = parts[r];
    const float4 wide = {__uint_as_float(part.x << 16), __uint_as_float(part.x & 0xffff0000u),
                         __uint_as_float(part.y << 16), __uint_as_float(part.y & 0xffff0000u)};
    sum = r == 0 ? wide : AddTiles(sum, wide);
    asm volatile("st.volatile.global.v2.u32 [%0], {%1, %1};" ::"l"(place(r) + emptied),
                 "r"(kNotArrived)
                 : "memory");
  }
  return sum;
}

// The residual stream's end of a product.
__device__ __forceinline__ void AddToResidual(const Block& block, const Phase& phase,
                                              uint32_t operation, int tile, int lane, float4 before,
                                              float4 v) {
  if (block.program().collective.num_ranks > 1) v = SumOverRanks(block, operation, tile, lane, v);
  WriteResidualTile(phase, block.program().hidden, tile, lane, AddTiles(before, v));
}

// ---- Embeddings: each block writes its part of the residual stream, a warp per tile.

// `source(row)`: bf16 [H] or null for zeros.
template <typename Source>
__device__ __forceinline__ void EmbedRows(const Block& block, const Phase& phase, Source source) {
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  const int hidden = block.program().hidden;
  const TileWalk walk(block, TileOrder::kOwned, hidden / 16);
  const int count = walk.OwnedCount(block.rank), first = walk.FirstOwned(block.rank);
  const bf16* const even = source(lane % 4 * 2);
  const bf16* const odd = source(lane % 4 * 2 + 1);
  for (int i = warp; i < count; i += kConsumerWarps) {
    const int column = (first + i) * 16 + lane / 4;
    const auto value = [&](const bf16* row, int c) {
      return row == nullptr ? 0.0f : Bf16ToFloat(__ldg(row + c));
    };
    WriteResidualTile(
        phase, hidden, first + i, lane,
        {value(even, column), value(odd, column), value(even, column + 8), value(odd, column + 8)});
  }
}

}  // namespace ultraspeed::kernels::cuda::resident
