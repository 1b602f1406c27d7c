// Rows on their way into a product and out of it: the norm or activation that a product's input
// passes, the residual stream with its sums of squares, the sum over ranks, the embeddings.
//
// The same scalar operations in the same order as kernels/cuda/rows.cu.
#pragma once

#include "kernels/cuda/device/fragments.cuh"
#include "kernels/cuda/device/numbers.cuh"
#include "kernels/cuda/device/rank_words.cuh"
#include "kernels/cuda/device/reduce.cuh"
#include "kernels/cuda/resident/block.cuh"

namespace ultraspeed::kernels::cuda::resident {

// ---- In

constexpr uint32_t kNoInputGain = 0x3f803f80u;  // two bf16 ones

// Bytes from row to row of the staging area: the lanes of a fragment read without bank conflicts.
__host__ __device__ constexpr int StagingStride(int columns) { return columns * 2 + 64; }
static_assert(kRowsMax * StagingStride(kShareBlocksMax * 2 * kSlabColumns) <= kStagingBytes);

__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  return RoundToBf16(low) | uint32_t{RoundToBf16(high)} << 16;
}

// Columns of a row as bf16, from whatever the phase's input is. Loads stay in their order, so that
// one address is alive at a time.
__device__ __forceinline__ float4 LoadFour(const float* p) {
  float4 v;
  asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(p));
  return v;
}
__device__ __forceinline__ uint2 GainedFour(uint2 x, uint32_t gain) {
  return {MultiplyBf16x2(x.x, gain), MultiplyBf16x2(x.y, gain)};
}
__device__ __forceinline__ uint4 GainedEight(uint4 x, uint32_t gain) {
  const uint2 low = GainedFour({x.x, x.y}, gain), high = GainedFour({x.z, x.w}, gain);
  return {low.x, low.y, high.x, high.y};
}
__device__ __forceinline__ uint2 NormFour(float4 x, float scale, float4 w) {
  return {PackBf16(NormElement(x.x, scale, w.x), NormElement(x.y, scale, w.y)),
          PackBf16(NormElement(x.z, scale, w.z), NormElement(x.w, scale, w.w))};
}
__device__ __forceinline__ uint2 SwiGluFour(float4 gate, float4 up) {
  const auto pair = [](float g0, float u0, float g1, float u1) {
    return SwiGluProduct(g0, u0) | uint32_t{SwiGluProduct(g1, u1)} << 16;
  };
  return {pair(gate.x, up.x, gate.y, up.y), pair(gate.z, up.z, gate.w, up.w)};
}

// Scale of each row from the sums of squares of its tiles. Finishers make them while consumers load
// the rows: both meet before, when the input is there, and after.
__device__ __forceinline__ void MakeScales(const Block& block, const Phase& phase) {
  const int warp = Thread() / kWarpLanes - kFirstFinisherWarp, lane = Thread() % kWarpLanes;
  constexpr int kRows = (kRowsMax + kFinisherWarps - 1) / kFinisherWarps;
  constexpr int kTilesPerLane = kPassBlocks * 2 * kSlabColumns / kTileRows / kWarpLanes;
  const int num_tiles = block.program().hidden / kTileRows;
  NamedBarrier<kWorkerBarrier, kWorkerThreads>();
  float squares[kRows][kTilesPerLane];  // requested together
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float* const row =
        phase.squares + min(warp + i * kFinisherWarps, kRowsMax - 1) * num_tiles + lane;
#pragma unroll
    for (int j = 0; j < kTilesPerLane; ++j) {
      squares[i][j] = j * kWarpLanes + lane < num_tiles ? __ldcg(row + j * kWarpLanes) : 0.0f;
    }
  }
  float sums[kRows] = {};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kTilesPerLane; ++j) sums[i] = __fadd_rn(sums[i], squares[i][j]);
  }
  float sum = 0.0f;  // lane i's: of the warp's i-th row
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float all = WarpReduce(sums[i], AddFloats());
    sum = lane == i ? all : sum;
  }
  const int row = warp + lane * kFinisherWarps;
  if (lane < kRows && row < kRowsMax)
    block.shared().scale[row] = NormScale(sum, block.program().hidden, phase.epsilon);
  NamedBarrier<kWorkerBarrier, kWorkerThreads>();
}

// Waits for the phase's input and brings this thread block's share of its columns into the staging
// area: kRowsMax rows of bf16, with the format's gain, a warp per block of two slabs. All consumers
// call it. Everything is requested before anything is looked at.
//
// Inlined at its one call, as all large functions here: shared memory leaves L1 next to nothing, so
// registers that a call saves or that spill go to L2.
__device__ __forceinline__ void StageInput(const Block& block, const Phase& phase,
                                           const Share& share) {
  const int warp = Thread() / kWarpLanes, lane = Thread() % kWarpLanes;
  const int share_slabs = ShareSlabs(share, phase.num_slabs);
  const int slabs = warp < share.count ? min(2, share_slabs - 2 * warp) : 0;
  // Missing slabs are read at places that exist, and not stored.
  const int first = slabs > 0 ? (share.first + warp) * 2 * kSlabColumns : 0;
  const int second = slabs > 1 ? kSlabColumns : 0;
  const uint32_t gain = HasInputGain(phase.format) ? kInputGain : kNoInputGain;
  const int stride = StagingStride(share_slabs * kSlabColumns);
  uint8_t* staged = block.shared().staging + warp * 4 * kSlabColumns;
  if (phase.input == InputKind::kNorm) {
    const auto* const norm = phase.norm_weight + first + lane * 4;
    const float4 weights[2] = {__ldg(reinterpret_cast<const float4*>(norm)),
                               __ldg(reinterpret_cast<const float4*>(norm + second))};
    if (Thread() == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
    NamedBarrier<kWorkerBarrier, kWorkerThreads>();
    const float* x = static_cast<const float*>(phase.x) + first + lane * 4;
    float4 in[kRowsMax][2];
#pragma unroll
    for (int row = 0; row < kRowsMax; ++row, x += phase.x_stride) {
      in[row][0] = LoadFour(x);
      in[row][1] = LoadFour(x + second);
    }
    NamedBarrier<kWorkerBarrier, kWorkerThreads>();  // scales (MakeScales)
    if (slabs > 0) {
#pragma unroll
      for (int row = 0; row < kRowsMax; ++row, staged += stride) {
        const float scale = block.shared().scale[row];
        const auto store = [&](int h) {
          *reinterpret_cast<uint2*>(staged + h * 2 * kSlabColumns + lane * 8) =
              GainedFour(NormFour(in[row][h], scale, weights[h]), gain);
        };
        store(0);
        if (slabs > 1) store(1);
      }
    }
  } else {
    if (Thread() == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
    NamedBarrier<kConsumerBarrier, kConsumerThreads>();
    if (phase.input == InputKind::kBf16) {
      if (lane * 8 < slabs * kSlabColumns) {
        const bf16* const x = static_cast<const bf16*>(phase.x) + first + lane * 8;
        uint4 in[kRowsMax];
#pragma unroll
        for (int row = 0; row < kRowsMax; ++row)
          in[row] = __ldcg(reinterpret_cast<const uint4*>(x + row * phase.x_stride));
#pragma unroll
        for (int row = 0; row < kRowsMax; ++row)
          *reinterpret_cast<uint4*>(staged + row * stride + lane * 16) = GainedEight(in[row], gain);
      }
    } else {
      const float* gate = static_cast<const float*>(phase.x) + first + lane * 4;
#pragma unroll 2
      for (int row = 0; row < kRowsMax; ++row, gate += phase.x_stride, staged += stride) {
        for (int h = 0; h < slabs; ++h) {
          const float* const from = gate + h * kSlabColumns;
          *reinterpret_cast<uint2*>(staged + h * 2 * kSlabColumns + lane * 8) =
              GainedFour(SwiGluFour(LoadFour(from), LoadFour(from + phase.x_stride / 2)), gain);
        }
      }
    }
  }
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
}

// Where the lane's columns of the share's block `part` are staged: those of group j of 32 columns
// are 64 j bytes on.
__device__ __forceinline__ const uint8_t* StagedFragments(const Block& block, int part,
                                                          int share_slabs, int lane) {
  return block.shared().staging + lane / 4 * StagingStride(share_slabs * kSlabColumns) +
         part * 4 * kSlabColumns + lane % 4 * 16;
}
__device__ __forceinline__ uint4 StagedGroup(const uint8_t* fragments, int j) {
  return *reinterpret_cast<const uint4*>(fragments + j * 64);
}

// ---- Out

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
// the kernel's start; three inboxes take turns, and the one of the sum before is emptied while this
// one's data is under way: no rank can fill it before it has seen our data of the next.
__device__ __forceinline__ float4 SumOverRanks(const Block& block, uint32_t operation, int tile,
                                               int lane, float4 v) {
  const Collective& ranks = block.program().collective;
  const uint2 mine = {PairWord(v.x, v.y), PairWord(v.z, v.w)};
  const size_t inbox_words = ranks.num_ranks * ranks.inbox_rank_words;
  const size_t at = operation % 3 * inbox_words + static_cast<size_t>(tile) * 32 + lane;
  const size_t emptied = (operation + 2) % 3 * inbox_words + static_cast<size_t>(tile) * 32 + lane;
#pragma unroll
  for (int r = 0; r < kRanksMax; ++r) {
    if (r >= ranks.num_ranks) break;
    asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(ranks.push[r] + at), "r"(mine.x),
                 "r"(mine.y)
                 : "memory");
  }
  const auto place = [&](int r) { return ranks.inbox + r * ranks.inbox_rank_words; };
#pragma unroll
  for (int r = 0; r < kRanksMax; ++r) {
    if (r >= ranks.num_ranks) break;
    asm volatile("st.volatile.global.v2.u32 [%0], {%1, %1};" ::"l"(place(r) + emptied),
                 "r"(kNotArrived)
                 : "memory");
  }
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
  }
  return sum;
}

// The residual stream's end of a product.
static __device__ __noinline__ void AddToResidual(Block block, const Phase& phase,
                                                  uint32_t operation, int tile, float4 before,
                                                  float4 v) {
  const int lane = Thread() % kWarpLanes;
  if (block.program().collective.num_ranks > 1) v = SumOverRanks(block, operation, tile, lane, v);
  WriteResidualTile(phase, block.program().hidden, tile, lane, AddTiles(before, v));
}

// ---- Embeddings: each block writes its part of the residual stream, a warp per tile.

// `source(row)`: bf16 [H] or null for zeros.
template <typename Source>
__device__ __forceinline__ void EmbedRows(const Block& block, const Phase& phase, Source source) {
  const int warp = Thread() / kWarpLanes, lane = Thread() % kWarpLanes;
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
