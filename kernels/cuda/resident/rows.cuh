// Rows on their way into a product and out of it: the norm or activation that a product's input
// passes, the residual stream with its sums of squares, the sum over ranks, the embeddings.
//
// The same scalar operations in the same order as kernels/cuda/rows.cu.
#pragma once

#include "kernels/cuda/device/flagged_words.cuh"
#include "kernels/cuda/device/fragments.cuh"
#include "kernels/cuda/device/numbers.cuh"
#include "kernels/cuda/device/reduce.cuh"
#include "kernels/cuda/resident/block.cuh"

namespace ultraspeed::kernels::cuda::resident {

// ---- In

constexpr uint32_t kNoInputGain = 0x3f803f80u;  // two bf16 ones

// Bytes from row to row of the staging area: the lanes of a fragment read without bank conflicts.
__host__ __device__ constexpr int StagingStride(int columns) { return columns * 2 + 64; }
static_assert(kBandRows * StagingStride(kShareBlocksMax * 2 * kSlabColumns) <= kStagingBytes);

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
__device__ __forceinline__ float4 Scaled(float4 x, float factor) {
  return {__fmul_rn(x.x, factor), __fmul_rn(x.y, factor), __fmul_rn(x.z, factor),
          __fmul_rn(x.w, factor)};
}
// Eight columns of the stream, two of a word.
__device__ __forceinline__ uint4 NormEight(uint4 x, float scale, const float4 (&w)[2]) {
  const auto pair = [&](uint32_t word, float low, float high) {
    return PackBf16(NormElement(__uint_as_float(word << 16), scale, low),
                    NormElement(__uint_as_float(word & 0xffff0000u), scale, high));
  };
  return {pair(x.x, w[0].x, w[0].y), pair(x.y, w[0].z, w[0].w), pair(x.z, w[1].x, w[1].y),
          pair(x.w, w[1].z, w[1].w)};
}
__device__ __forceinline__ uint2 SwiGluFour(float4 gate, float4 up) {
  const auto pair = [](float g0, float u0, float g1, float u1) {
    return SwiGluProduct(g0, u0) | uint32_t{SwiGluProduct(g1, u1)} << 16;
  };
  return {pair(gate.x, up.x, gate.y, up.y), pair(gate.z, up.z, gate.w, up.w)};
}

// ---- The residual stream between blocks (RowMail)

// As the phase writes it, or as the write before left it.
enum class RowTurn : uint32_t { kThis, kBefore };
// How often the band was written since the kernel's start.
__device__ __forceinline__ uint32_t TurnOf(const Block& block, const Phase& phase, int band,
                                           RowTurn turn) {
  const uint32_t writes =
      block.shared().state.round * block.program().of_round.rows[band] + phase.before.rows[band];
  return (writes + static_cast<uint32_t>(turn)) % 2;
}
// The band's first row.
__device__ __forceinline__ uint32_t* MailRows(const Block& block, const Phase& phase, int band,
                                              RowTurn turn) {
  const Program& program = block.program();
  return program.rows.rows +
         (TurnOf(block, phase, band, turn) * kBandsMax + band) * (kBandRows * program.hidden / 2);
}
__device__ __forceinline__ uint32_t* MailSquares(const Block& block, const Phase& phase, int band,
                                                 RowTurn turn) {
  const Program& program = block.program();
  return program.rows.squares +
         (TurnOf(block, phase, band, turn) * kBandsMax + band) * (kBandRows * program.hidden / 16);
}

// Sums of squares of a row's tiles, a few a lane, on their way.
constexpr int kSquaresPerLane = kPassBlocks * 2 * kSlabColumns / kTileRows / kWarpLanes;
using Squares = uint32_t[kSquaresPerLane];
__device__ __forceinline__ void PollSquares(const uint32_t* row, int num_tiles, int lane,
                                            Squares& squares) {
#pragma unroll
  for (int j = 0; j < kSquaresPerLane; ++j) {
    squares[j] = j * kWarpLanes + lane < num_tiles ? PollWord(row + j * kWarpLanes + lane) : 0u;
  }
}
// The row's scale from them.
__device__ __forceinline__ float ScaleOf(const Squares& squares, int hidden, float epsilon) {
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kSquaresPerLane; ++j) sum = __fadd_rn(sum, __uint_as_float(squares[j]));
  return NormScale(WarpReduce(sum, AddFloats()), hidden, epsilon);
}

// Waits for the phase's input and brings this thread block's share of its columns into the staging
// area: kBandRows rows of bf16, with the format's gain, a warp per block of two slabs. All
// consumers call it. Everything is requested before anything is looked at.
//
// Inlined at its one call, as all large functions here: shared memory leaves L1 next to nothing, so
// registers that a call saves or that spill go to L2.
__device__ __forceinline__ void StageInput(const Block& block, const Phase& phase, int pass) {
  const Share share = ShareOf(phase.num_slabs, pass, block.rank);
  const int warp = Thread() / kWarpLanes, lane = Thread() % kWarpLanes;
  const int share_slabs = ShareSlabs(share, phase.num_slabs);
  const int slabs = warp < share.count ? min(2, share_slabs - 2 * warp) : 0;
  const int first = slabs > 0 ? (share.first + warp) * 2 * kSlabColumns : 0;
  const int stride = StagingStride(share_slabs * kSlabColumns);
  uint8_t* staged = block.shared().staging + warp * 4 * kSlabColumns;
  const bool has_eight = lane * 8 < slabs * kSlabColumns;  // columns
  const auto input_is_there = [&] {
    if (pass == 0 && Thread() == 0) block.shared().newest_input = block.NumberOf(phase);
  };
  if (phase.input == InputKind::kNorm) {
    // Those of a lane that has none are read where some are, and not stored.
    const int column = has_eight ? first + lane * 8 : 0;
    const auto* const norm = reinterpret_cast<const float4*>(phase.norm_weight + column);
    const float gain = HasInputGain(phase.format) ? kInputGainFloat : 1.0f;  // changes no bit
    const float4 unscaled[2] = {__ldg(norm), __ldg(norm + 1)};  // nobody waits for them yet
    const int hidden = block.program().hidden, num_tiles = hidden / kTileRows;
    const uint32_t* const x = MailRows(block, phase, phase.band, RowTurn::kBefore) + column / 2;
    // A warp makes the scale of one row, if MakeScales has not.
    static_assert(kBandRows <= kConsumerWarps);
    const bool has_scales = phase.kind == PhaseKind::kMoeUp;
    const uint32_t* const row_squares = MailSquares(block, phase, phase.band, RowTurn::kBefore) +
                                        min(warp, kBandRows - 1) * num_tiles;
    float* const scales = block.shared().scale + phase.band * kBandRows;
    if (!has_scales) {
      if (Thread() == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
      NamedBarrier<kConsumerBarrier, kConsumerThreads>();
    }
    Squares squares = {};
    uint4 in[kBandRows];
    block.Wait(WaitsFor::kOtherBlocks, [&] {  // all requested before the first is looked at
      if (!has_scales) PollSquares(row_squares, num_tiles, lane, squares);
#pragma unroll
      for (int row = 0; row < kBandRows; ++row) in[row] = PollFour(x + row * (hidden / 2));
      bool arrived = HaveArrived(in);
#pragma unroll
      for (int j = 0; j < kSquaresPerLane; ++j) arrived &= HasArrived(squares[j]);
      return __all_sync(kAllLanes, arrived) != 0;
    });
    if (warp < kBandRows && !has_scales) {
      const float scale = ScaleOf(squares, hidden, phase.epsilon);
      if (lane == 0) scales[warp] = scale;
    }
    NamedBarrier<kConsumerBarrier, kConsumerThreads>();
    input_is_there();
    if (has_eight) {
      const float4 weights[2] = {Scaled(unscaled[0], gain), Scaled(unscaled[1], gain)};
#pragma unroll
      for (int row = 0; row < kBandRows; ++row, staged += stride) {
        *reinterpret_cast<uint4*>(staged + lane * 16) = NormEight(in[row], scales[row], weights);
      }
    }
  } else {
    const uint32_t gain = HasInputGain(phase.format) ? kInputGain : kNoInputGain;
    if (Thread() == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
    NamedBarrier<kConsumerBarrier, kConsumerThreads>();
    input_is_there();
    if (phase.input == InputKind::kBf16) {
      if (has_eight) {
        const bf16* const x = static_cast<const bf16*>(phase.x) + first + lane * 8;
        uint4 in[kBandRows];
#pragma unroll
        for (int row = 0; row < kBandRows; ++row)
          in[row] = __ldcg(reinterpret_cast<const uint4*>(x + row * phase.x_stride));
#pragma unroll
        for (int row = 0; row < kBandRows; ++row)
          *reinterpret_cast<uint4*>(staged + row * stride + lane * 16) = GainedEight(in[row], gain);
      }
    } else {
      const float* gate = static_cast<const float*>(phase.x) + first + lane * 4;
#pragma unroll 1
      for (int h = 0; h < slabs; ++h, gate += kSlabColumns, staged += 2 * kSlabColumns) {
        float4 gates[kBandRows], ups[kBandRows];  // all requested before the first is looked at
#pragma unroll
        for (int row = 0; row < kBandRows; ++row) {
          gates[row] = LoadFour(gate + row * phase.x_stride);
          ups[row] = LoadFour(gate + row * phase.x_stride + phase.x_stride / 2);
        }
#pragma unroll
        for (int row = 0; row < kBandRows; ++row) {
          *reinterpret_cast<uint2*>(staged + row * stride + lane * 8) =
              GainedFour(SwiGluFour(gates[row], ups[row]), gain);
        }
      }
    }
  }
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
}

// Scales of all bands' rows, for the router: the rows themselves take longer. All consumers call
// it.
template <int kBands>
__device__ __forceinline__ void MakeScales(const BandBlock<kBands>& block, const Phase& phase) {
  const int warp = Thread() / kWarpLanes, lane = Thread() % kWarpLanes;
  const int hidden = block.program().hidden, num_tiles = hidden / kTileRows;
  if (Thread() == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
#pragma unroll 1
  for (int row = warp; row < kBands * kBandRows; row += kConsumerWarps) {
    const int band = kBands == 1 ? 0 : row / kBandRows;
    const uint32_t* const row_squares =
        MailSquares(block, phase, band, RowTurn::kBefore) + (row - band * kBandRows) * num_tiles;
    Squares squares;
    block.Wait(WaitsFor::kOtherBlocks, [&] {
      PollSquares(row_squares, num_tiles, lane, squares);
      bool arrived = true;
#pragma unroll
      for (int j = 0; j < kSquaresPerLane; ++j) arrived &= HasArrived(squares[j]);
      return __all_sync(kAllLanes, arrived) != 0;
    });
    const float scale = ScaleOf(squares, hidden, phase.epsilon);
    if (lane == 0) block.shared().scale[row] = scale;
  }
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  if (Thread() == 0) block.shared().newest_scales = block.NumberOf(phase);
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

// A finished tile of a band of the residual stream, by one warp: v.x, v.y belong to column
// tile * 16 + g of the band's rows 2 t, 2 t + 1; v.z, v.w to column + 8.
struct StreamTile {
  const Block& block;
  const Phase& phase;
  const uint32_t hidden, turn;
  const uint32_t band, tile, g;
  const uint32_t row;  // of the pass

  __device__ __forceinline__ StreamTile(const Block& in_block, const Phase& of_phase, int of_band,
                                        int index, int lane)
      : block(in_block),
        phase(of_phase),
        hidden(in_block.program().hidden),
        turn(TurnOf(in_block, of_phase, of_band, RowTurn::kThis)),
        band(of_band),
        tile(index),
        g(lane / 4),
        row(of_band * kBandRows + lane % 4 * 2) {}

  // What others wait for: the mail, which the block keeps for the router, too.
  __device__ __forceinline__ void Send(float4 v) const {
    const RowMail& mail = block.program().rows;
    const auto pair = [&](float even, float odd) {
      const float other = __shfl_xor_sync(kAllLanes, takes_odd() ? even : odd, 4);
      return takes_odd() ? FlaggedWord(other, odd) : FlaggedWord(even, other);
    };
    const uint32_t low_pair = pair(v.x, v.y), high_pair = pair(v.z, v.w);
    uint32_t* const sent = mail.rows + (turn * row_words() + word());
    __stcg(sent, low_pair);
    __stcg(sent + 4, high_pair);
    uint32_t* const owned =
        block.shared().owned[band][tile % kOwnedTilesMax][row % kBandRows + takes_odd()] + g / 2;
    owned[0] = low_pair;
    owned[4] = high_pair;
    const float even = __fmaf_rn(v.z, v.z, __fmul_rn(v.x, v.x));
    const float odd = __fmaf_rn(v.w, v.w, __fmul_rn(v.y, v.y));
    float squares = __fadd_rn(takes_odd() ? odd : even,
                              __shfl_xor_sync(kAllLanes, takes_odd() ? even : odd, 4));
#pragma unroll
    for (int mask = 8; mask <= 16; mask *= 2)
      squares = __fadd_rn(squares, __shfl_xor_sync(kAllLanes, squares, mask));
    if (g < 2) __stcg(mail.squares + (turn * square_words() + square()), __float_as_uint(squares));
  }

  // The rest: values, tap, and the other mail emptied.
  __device__ __forceinline__ void Keep(float4 v) const {
    const RowMail& mail = block.program().rows;
    if (g < 2) __stcg(mail.squares + ((turn ^ 1) * square_words() + square()), kNotArrived);
    uint32_t* const emptied = mail.rows + ((turn ^ 1) * row_words() + word());
    __stcg(emptied, kNotArrived);
    __stcg(emptied + 4, kNotArrived);
    const uint32_t column = tile * 16 + g;
    if (phase.residual != nullptr) {
      float* const low = phase.residual + (row * hidden + column);
      float* const high = low + hidden;
      low[0] = v.x;
      high[0] = v.y;
      low[8] = v.z;
      high[8] = v.w;
    }
    if (phase.tap != nullptr) {
      bf16* const tap = phase.tap + static_cast<int64_t>(row) * phase.tap_stride + column;
      tap[0] = RoundToBf16(v.x);
      tap[8] = RoundToBf16(v.z);
      tap[phase.tap_stride] = RoundToBf16(v.y);
      tap[phase.tap_stride + 8] = RoundToBf16(v.w);
    }
  }

 private:
  // A lane and the one four further have neighbouring columns: each sends the pairs of one row, and
  // adds up its squares.
  __device__ __forceinline__ bool takes_odd() const { return g % 2 != 0; }
  __device__ __forceinline__ uint32_t row_words() const { return kRowsMax * (hidden / 2); }
  __device__ __forceinline__ uint32_t word() const {
    return (row + takes_odd()) * (hidden / 2) + (tile * 16 + g) / 2;
  }
  __device__ __forceinline__ uint32_t square_words() const { return kRowsMax * (hidden / 16); }
  __device__ __forceinline__ uint32_t square() const { return (row + g) * (hidden / 16) + tile; }
};

__device__ __forceinline__ void WriteResidualTile(const Block& block, const Phase& phase, int band,
                                                  int tile, int lane, float4 v) {
  const StreamTile to(block, phase, band, tile, lane);
  to.Send(v);
  to.Keep(v);
}

__device__ __forceinline__ float4 ReadResidualTile(const Phase& phase, int hidden, int tile,
                                                   int lane) {
  const int row = phase.band * kBandRows + lane % 4 * 2;
  const float* const low = phase.residual + (row * hidden + tile * 16 + lane / 4);
  const float* const high = low + hidden;
  return {__ldcg(low), __ldcg(high), __ldcg(low + 8), __ldcg(high + 8)};
}

// The sum of all ranks' parts of a tile, each rounded to bf16. Sums are counted since the kernel's
// start; three inboxes take turns, and the one of the sum before is emptied while this one's data
// is under way: no rank can fill it before it has seen our data of the next.
//
// Everyone waits for who runs this, alone with its tile, so it is kept to few instructions: offsets
// of 32 bits, no branch between ranks.
__device__ __forceinline__ float4 SumOverRanks(const Block& block, const Phase& phase, int tile,
                                               int lane, float4 v) {
  const Collective& ranks = block.program().collective;
  const int num_ranks = ranks.num_ranks;
  const uint2 mine = {FlaggedWord(v.x, v.y), FlaggedWord(v.z, v.w)};
  const uint32_t rank_words = static_cast<uint32_t>(ranks.inbox_rank_words);
  const uint32_t turn = block.SinceStart(&Tally::sums, phase) % 3;
  const uint32_t place = tile * kWarpLanes + lane;
  const uint32_t at = turn * num_ranks * rank_words + place;
  const uint32_t emptied = (turn == 0 ? 2 : turn - 1) * num_ranks * rank_words + place;
  const auto store = [](uint2* to, uint2 words) {
    asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(words.x), "r"(words.y)
                 : "memory");
  };
#pragma unroll
  for (int r = 0; r < kRanksMax; ++r) {
    if (r < num_ranks) store(ranks.push[r] + at, mine);
  }
  uint2* const inbox = ranks.inbox;
#pragma unroll
  for (int r = 0; r < kRanksMax; ++r) {
    if (r < num_ranks) store(inbox + (emptied + r * rank_words), {kNotArrived, kNotArrived});
  }
  uint2 parts[kRanksMax] = {};        // of ranks that there are not: zeros, which change no sum
  block.Wait(WaitsFor::kPeers, [&] {  // all requested before the first is looked at
#pragma unroll
    for (int r = 0; r < kRanksMax; ++r) {
      if (r < num_ranks) parts[r] = PollPair(inbox + (at + r * rank_words));
    }
    return HaveArrived(parts);
  });
  float4 sum = {};
#pragma unroll
  for (int r = 0; r < kRanksMax; ++r) {
    const uint2 part = parts[r];
    sum = Add(sum, {__uint_as_float(part.x << 16), __uint_as_float(part.x & 0xffff0000u),
                    __uint_as_float(part.y << 16), __uint_as_float(part.y & 0xffff0000u)});
  }
  return sum;
}

// The residual stream's end of a product. Each tile arrives by itself.
static __device__ __noinline__ void AddToResidual(Block block, const Phase& phase, int tile,
                                                  float4 before, float4 v) {
  const int lane = Thread() % kWarpLanes;
  if (block.program().collective.num_ranks > 1) {
    v = SumOverRanks(block, phase, tile, lane, v);
  }
  v = Add(before, v);
  const StreamTile to(block, phase, phase.band, tile, lane);
  to.Send(v);
  __syncwarp();
  if (lane == 0) Announce(block.Counter(phase.arrive_counter));
  to.Keep(v);
}

// ---- Embeddings: each block writes its part of the residual stream, a warp per tile.

// `source(row)`, of the pass: bf16 [H] or null for zeros.
template <typename Source>
__device__ __forceinline__ void EmbedRows(const Block& block, const Phase& phase, int band,
                                          Source source) {
  const int warp = Thread() / kWarpLanes, lane = Thread() % kWarpLanes;
  const int hidden = block.program().hidden;
  const TileWalk walk(block, TileOrder::kOwned, hidden / 16);
  const int count = walk.OwnedCount(block.rank), first = walk.FirstOwned(block.rank);
  const int row = band * kBandRows + lane % 4 * 2;
  const bf16* const even = source(row);
  const bf16* const odd = source(row + 1);
  for (int i = warp; i < count; i += kConsumerWarps) {
    const int column = (first + i) * 16 + lane / 4;
    const auto value = [&](const bf16* row, int c) {
      return row == nullptr ? 0.0f : Bf16ToFloat(__ldg(row + c));
    };
    WriteResidualTile(
        block, phase, band, first + i, lane,
        {value(even, column), value(odd, column), value(even, column + 8), value(odd, column + 8)});
  }
}

}  // namespace ultraspeed::kernels::cuda::resident
