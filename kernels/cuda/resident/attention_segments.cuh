// Attention of a long full layer, segment after segment.
//
// A block takes a contiguous share of the layer's units (64 pairs and a segment each), so that it
// seldom changes its queries, and blocks that have other queries of the same keys read those at the
// same time. Chunks are handed on, by what fits the 128 registers of a thread:
//   load   (the finishers, who have no other work then) keys and values, part by part of 64 keys x
//          64 dims, by bulk copies through a ring; a chunk that holds rows of this round, which are
//          not in the cache yet, is put together by hand
//   score  (four warps) the chunk's weights, into shared memory
//   weigh  (eight warps) its values, half of the dims each, joined to the segment's
// Order and bits are those of attention.cu. Whole warpgroups' products (device/wgmma.cuh) would
// need less shared memory bandwidth, but this is a function of its own, and the compiler makes each
// of them wait for the one before where a function that is called has them. Queries in registers,
// 48, made the rest of the kernel spill: rounds took 13 % longer, short contexts' too. Bytes of a
// unit: (D + Dv) * 2 per key, 528 per pair of partials.
#pragma once

#include "kernels/cuda/resident/attention_segment_loader.cuh"

namespace ultraspeed::kernels::cuda::resident {

// ---- Scores

// What those who multiply do with the ring. A lane of warp w of four holds pairs
// 16 w + lane / 4 and 8 more (index i), and columns 2 * (lane % 4) + {0, 1} of every 8.
template <int kDim>
class SegmentReader {
 public:
  explicit __device__ __forceinline__ SegmentReader(SegmentScratch<kDim>& shared)
      : shared_(shared), warp_(Thread() / kWarpLanes % kGroupWarps), lane_(Thread() % kWarpLanes) {}

 protected:
  static constexpr int kKeyParts = kDim / kPartColumns, kValueParts = kValueDim / kPartColumns;

  __device__ __forceinline__ int PairOf(int i) const {
    return warp_ * kWarpPairs + lane_ / 4 + 8 * i;
  }
  __device__ __forceinline__ void WaitFor(int part) const {
    const RingPlace place(number_ + part);
    WaitBarrier(&shared_.full[place.slot], place.parity);
    __syncwarp();
  }
  __device__ __forceinline__ uint32_t Slot(int part) const {
    return SharedAddress(shared_.slots[RingPlace(number_ + part).slot]);
  }
  // This warp has read a part.
  __device__ __forceinline__ void Release(int part) const {
    Signal(&shared_.empty[RingPlace(number_ + part).slot]);
  }
  // One arrival of the warp. The fence is needed: without it weights were found half written, or
  // were written while they were being read (H200, CUDA 13.0).
  __device__ __forceinline__ void Signal(uint64_t* barrier) const {
    __threadfence_block();
    __syncwarp();
    if (lane_ == 0) Arrive(barrier, 1);
  }
  __device__ __forceinline__ void NextChunk() { number_ += kKeyParts + kValueParts; }

  SegmentScratch<kDim>& shared_;
  const int warp_, lane_;
  uint32_t number_ = 0;  // of the chunk's first part
};

template <int kDim>
class SegmentScorer : SegmentReader<kDim> {
 public:
  __device__ __forceinline__ SegmentScorer(const AttentionTask& task, SegmentScratch<kDim>& shared)
      : SegmentReader<kDim>(shared),
        task_(task),
        group_(GroupOf(task)),
        scale_(ScoreScale(task.score_scale)) {}

  static __device__ __forceinline__ void ScorersMeet() {
    NamedBarrier<kScoreBarrier, kGroupWarps * kWarpLanes>();
  }

  // As many units as the loaders bring. The projections are there.
  __device__ __forceinline__ void Run(const RoundView* views, int count) {
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      this->WaitFor(0);
      const SegmentUnit& unit = this->shared_.units[i % kUnitsKnown];
      if (i == 0 || HasOtherQueries(unit, this->shared_.units[(i - 1) % kUnitsKnown])) {
        MakeQueries(views[unit.view], unit.part);
      }
      Score(views[unit.view], unit.part);
    }
  }

 private:
  static constexpr int kSteps = kDim / 16, kPartSteps = kPartColumns / 16;

  static __device__ __forceinline__ bool HasOtherQueries(const SegmentUnit& a,
                                                         const SegmentUnit& b) {
    return a.view != b.view || a.part.kv_head != b.part.kv_head ||
           a.part.pair_begin != b.part.pair_begin;
  }
  // Until the weights of the last chunk have been used.
  __device__ __forceinline__ void WaitForRoom() const {
    WaitBarrier(&this->shared_.weights_free, chunk_ % 2 ^ 1);
    __syncwarp();
  }

  // Of the warp's pairs, which no other warp reads.
  __device__ __forceinline__ void MakeQueries(const RoundView& round, const PartUnit& unit) {
    constexpr int kHeads = 8;  // at once
#pragma unroll 1
    for (int first = 0; first < kWarpPairs; first += kHeads) {
      HeadBatch<kDim, kHeads, InParts> queries(
          task_, round, group_, unit.kv_head, task_.q_norm, [&](int i) -> HeadMove {
            const int h = this->warp_ * kWarpPairs + first + i;
            const int pair = unit.pair_begin + h, row = group_.RowOf(pair);
            return {HeadKind::kQuery, row, pair - row * group_.size,
                    h < unit.num_pairs ? this->shared_.queries : nullptr, h};
          });
      queries.Load(task_);
      queries.Store(task_);
    }
    __syncwarp();
  }

  __device__ __forceinline__ void Score(const RoundView& round, const PartUnit& unit) {
    Softmax state[2] = {{kNoScore, 0.0f}, {kNoScore, 0.0f}};
    const int first_key[2] = {0, 0};
    int end_key[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int pair = unit.pair_begin + min(this->PairOf(i), unit.num_pairs - 1);
      end_key[i] = EndKey(task_, static_cast<int>(round.position), group_.RowOf(pair));
    }
    const int chunk_end = unit.chunk_end;
#pragma unroll 1
    for (int chunk = unit.chunk_begin; chunk < chunk_end; ++chunk) {
      ChunkScores scores;
      MakeScores(scores);
      Factors factors[2];
      WeighScores(scores, chunk * kChunkKeys, first_key, end_key, scale_, state, factors);
      WaitForRoom();
      StoreWeights(scores, factors);
      ++chunk_;
      this->NextChunk();
    }
    if (this->lane_ % 4 != 0) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      AttentionPartial* const partial = PartialOfPair(task_, round, group_, unit, this->PairOf(i));
      if (partial != nullptr) partial->state = state[i];
    }
  }

  // Of a step of 16 dims: the pairs' and all keys', 16 keys a load.
  struct Operands {
    uint32_t queries[4];
    uint32_t keys[kChunkKeys / 16][4];
  };
  __device__ __forceinline__ void Load(int step, Operands& to) const {
    const int part = step / kPartSteps, unit = step % kPartSteps * 2, lane = this->lane_;
    constexpr int kRowBytes = kPartColumns * 2;
    // Matrix m = lane / 8 of a load of queries: pairs 8 * (m % 2) + .., dims 8 * (m / 2) + ..; of
    // keys: keys 8 * (m / 2) + .., dims 8 * (m % 2) + ..
    LoadMatrices(to.queries, SharedAddress(this->shared_.queries) + part * kPartBytes +
                                 (this->warp_ * kWarpPairs + lane % 16) * kRowBytes +
                                 ((unit + lane / 16) ^ (lane % 8)) * 16);
    const uint32_t keys = this->Slot(part) + (lane / 16 * 8 + lane % 8) * kRowBytes +
                          ((unit + lane / 8 % 2) ^ (lane % 8)) * 16;
#pragma unroll
    for (int i = 0; i < kChunkKeys / 16; ++i) LoadMatrices(to.keys[i], keys + i * 16 * kRowBytes);
  }

  // The chunk's keys are free then. A step's operands are under way while the one before is
  // multiplied.
  __device__ __forceinline__ void MakeScores(ChunkScores& scores) const {
#pragma unroll
    for (int n = 0; n < kChunkKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) scores[n][j] = 0.0f;
    }
    Operands operands[2];
    this->WaitFor(0);
    Load(0, operands[0]);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int next = step + 1;
      if (next < kSteps) {
        if (next % kPartSteps == 0) this->WaitFor(next / kPartSteps);
        Load(next, operands[next % 2]);
      }
      const Operands& now = operands[step % 2];
#pragma unroll
      for (int n = 0; n < kChunkKeys / 8; ++n) {
        Mma(scores[n], now.queries, now.keys[n / 2][n % 2 * 2], now.keys[n / 2][n % 2 * 2 + 1]);
      }
      if (next % kPartSteps == 0) this->Release(step / kPartSteps);
    }
  }

  // Step by step, so that few registers hold both weights and terms.
  __device__ __forceinline__ void StoreWeights(const ChunkScores& weights,
                                               const Factors (&factors)[2]) const {
    const int lane = this->lane_;
    // Matrix m = lane / 8 of a store: pairs 8 * (m % 2) + .., keys 8 * (m / 2) + ..
    const uint32_t row = SharedAddress(this->shared_.weights) +
                         (this->warp_ * kWarpPairs + lane % 16) * kPartColumns * 2;
#pragma unroll
    for (int step = 0; step < kChunkSteps; ++step) {
      const uint32_t place = row + ((step * 2 + lane / 16) ^ (lane % 8)) * 16;
      uint32_t high[4], low[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* const pair = &weights[2 * step + j / 2][j % 2 * 2];
        SplitWeights(pair[0], pair[1], high[j], low[j]);
      }
      StoreMatrices(place, high);
      StoreMatrices(place + kPartBytes, low);
    }
    if (lane % 4 == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) this->shared_.factors[this->PairOf(i)] = factors[i];
    }
    this->Signal(&this->shared_.weighted);
  }

  const AttentionTask& task_;
  const Group group_;
  const float scale_;
  uint32_t chunk_ = 0;  // since the phase's start
};

// ---- Values

// The warps of part `part` of the values.
template <int kDim>
class SegmentWeigher : SegmentReader<kDim> {
 public:
  __device__ __forceinline__ SegmentWeigher(const AttentionTask& task, SegmentScratch<kDim>& shared,
                                            int part)
      : SegmentReader<kDim>(shared), task_(task), group_(GroupOf(task)), part_(part) {}

  // As many units as are scored.
  __device__ __forceinline__ void Run(const RoundView* views, int count) {
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      WaitForWeights();
      const SegmentUnit& unit = this->shared_.units[i % kUnitsKnown];
      Weigh(views[unit.view], unit.part);
    }
  }

 private:
  static constexpr int kTiles = kPartColumns / 8;

  __device__ __forceinline__ void WaitForWeights() const {
    WaitBarrier(&this->shared_.weighted, chunk_ % 2);
    __syncwarp();
  }

  __device__ __forceinline__ void Weigh(const RoundView& round, const PartUnit& unit) {
    float values[kTiles][4];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) values[n][j] = 0.0f;
    }
    const int num_chunks = unit.chunk_end - unit.chunk_begin;
#pragma unroll 1
    for (int i = 0; i < num_chunks; ++i) {
      WaitForWeights();
      const Factors factors[2] = {this->shared_.factors[this->PairOf(0)],
                                  this->shared_.factors[this->PairOf(1)]};
      float chunk[kTiles][4];
      MakeValues(chunk);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          values[n][j] = MergeValue(values[n][j], chunk[n][j], factors[j / 2]);
        }
      }
      ++chunk_;
      this->NextChunk();
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      AttentionPartial* const partial = PartialOfPair(task_, round, group_, unit, this->PairOf(i));
      if (partial == nullptr) continue;
      auto* const out = reinterpret_cast<float2*>(partial->values + part_ * kPartColumns);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        out[n * 4 + this->lane_ % 4] = {values[n][2 * i], values[n][2 * i + 1]};
      }
    }
  }

  // Weights times the chunk's values; both are free then.
  __device__ __forceinline__ void MakeValues(float (&values)[kTiles][4]) const {
    const int of_chunk = this->kKeyParts + part_, lane = this->lane_;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) values[n][j] = 0.0f;
    }
    this->WaitFor(of_chunk);
    // Matrix m = lane / 8 of a load of weights: pairs 8 * (m % 2) + .., keys 8 * (m / 2) + ..; of a
    // transposed load of values: keys 8 * (m % 2) + .., dims 8 * (m / 2) + ..
    constexpr int kRowBytes = kPartColumns * 2;
    const uint32_t pair =
        SharedAddress(this->shared_.weights) + (this->warp_ * kWarpPairs + lane % 16) * kRowBytes;
    const uint32_t key = this->Slot(of_chunk) + lane % 16 * kRowBytes;
#pragma unroll
    for (int step = 0; step < kChunkSteps; ++step) {
      uint32_t high[4], low[4], b[kTiles / 2][4];
      const uint32_t place = pair + ((step * 2 + lane / 16) ^ (lane % 8)) * 16;
      LoadMatrices(high, place);
#pragma unroll
      for (int i = 0; i < kTiles / 2; ++i) {
        LoadMatricesTransposed(
            b[i], key + step * kStepKeys * kRowBytes + ((i * 2 + lane / 16) ^ (lane % 8)) * 16);
      }
      LoadMatrices(low, place + kPartBytes);
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
        Mma(values[n], high, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
        Mma(values[n], low, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
    }
    this->Signal(&this->shared_.weights_free);
    this->Release(of_chunk);
  }

  const AttentionTask& task_;
  const Group group_;
  const int part_;
  uint32_t chunk_ = 0;  // since the phase's start
};

// ---- All of them

// A block's units, of which it has some: consumers call AttendSegments, finishers LoadSegments,
// where nobody uses `scratch` any more. Both call `wait` in one warp: before it only what earlier
// rounds wrote is read. Results: the units' partials. REQUIRES: as AttendPart, of a full layer.
template <int kDim, typename Work, typename WaitFn>
__device__ __forceinline__ void AttendSegments(const AttentionTask& task, const Work& work,
                                               UnitShare share, uint8_t* scratch, WaitFn wait) {
  auto& shared = *reinterpret_cast<SegmentScratch<kDim>*>(scratch);
  if (Thread() == 0) {
    for (int slot = 0; slot < kSlots; ++slot) {
      InitBarrier(&shared.full[slot]);
      InitBarrier(&shared.empty[slot], kGroupWarps);
    }
    InitBarrier(&shared.weighted, kGroupWarps);
    InitBarrier(&shared.weights_free, kWeighGroups * kGroupWarps);
    FenceBarrierInit();
  }
  NamedBarrier<kWorkerBarrier, kWorkerThreads>();
  const int group = Thread() / kWarpLanes / kGroupWarps, count = share.end - share.begin;
  if (group == 0) {
    if (Thread() < kWarpLanes) wait();
    SegmentScorer<kDim>::ScorersMeet();
    SegmentScorer<kDim>(task, shared).Run(work.views, count);
  } else {
    SegmentWeigher<kDim>(task, shared, group - 1).Run(work.views, count);
  }
}
template <int kDim, typename Work, typename WaitFn>
__device__ __forceinline__ void LoadSegments(const AttentionTask& task, const Work& work,
                                             UnitShare share, uint8_t* scratch, WaitFn wait) {
  NamedBarrier<kWorkerBarrier, kWorkerThreads>();
  auto& shared = *reinterpret_cast<SegmentScratch<kDim>*>(scratch);
  SegmentLoader<kDim>(task, shared).Run(work, share.begin, share.end, wait);
}

}  // namespace ultraspeed::kernels::cuda::resident
