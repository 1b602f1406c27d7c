// One thread block of the engine: its warps' roles, its shared memory, its place in the grid.
//
// Warps 0..11 are consumers (multiply, attend, choose), warp 12 is the producer (streams weights),
// warps 13..15 are finishers (add up the partial sums of tiles and write what comes of them).
#pragma once

#include "kernels/cuda/device/numbers.cuh"
#include "kernels/cuda/resident/sync.cuh"
#include "kernels/cuda/weight_layout.h"

namespace ultraspeed::kernels::cuda::resident {

constexpr int kPassBlocks = kPassSlabs / kBlockSlabs;
constexpr int kShareBlocksMax = kPassBlocks / kClusterBlocks;  // of them, a thread block's
static_assert(kShareBlocksMax <= kConsumerWarps);
constexpr int kExchangeBuffers = 3;  // tiles whose partials may be under way to their finisher
constexpr int kRingEntries = 32;
constexpr int kRingBytes = 131 * 1024 - 256;  // what the rest of Shared leaves
constexpr int kStagingBytes = 48 * 1024 + 512;
constexpr int kPhaseSlots = 3;
constexpr int kOwnedTilesMax = 2 * kRouterChunkTiles;  // of the residual stream
constexpr int kSlotStride = 576;  // bytes of a slot's activations in the staging area

// What the sequences and their next round look like; every block keeps its own copy, all equal.
struct RoundState {
  int64_t position[kSequencesMax];  // of the anchors
  int32_t tokens[kRowsMax];         // anchors, drafts
  union {
    float logprobs[kRowsMax];  // of drafts, by the drafter, if they are weighed; later:
    int32_t chosen[kRowsMax];  // the target's choice after each row
  };
  int32_t num_kept[kSequencesMax];  // rows of the last round whose state is committed
  int32_t num_experts;              // read in this round, of all layers together
  uint32_t round;
  bool runs_on;
  bool is_void;       // of block 0 of rank 0: the round's masks did not come
  bool has_segments;  // in a full layer of some sequence (HasSegments)
  // Of the pass that runs: one sequence in its drafter's, all of them in the target's. Attention
  // reads them here, since it has no registers for them.
  int num_views;
  RoundView views[kSequencesMax];
  uint32_t verified;  // bit r: row r of the target's pass, an anchor or a likely draft
  uint8_t num_verified[kSequencesMax];
  float log_reach_min;  // of the round
};

// The experts that a band's rows chose in one layer.
struct ExpertChoice {
  uint32_t chosen[kExpertWords];
  int32_t num_experts;
  int8_t slot_of[kSlotsMax][kBandRows];  // of (i-th expert chosen, row): row * K + k, or -1
  float weights[kSlotsMax];
  int32_t ids[kSlotsMax];  // [row, K], ascending
};
// The same, ascending: the producer makes the list itself, before the rest is known.
struct ExpertList {
  int32_t num_experts;
  int32_t experts[kSlotsMax];
};

struct alignas(128) Shared {
  uint8_t ring[kRingBytes];
  float4 exchange[kExchangeBuffers][kPassBlocks][32];
  uint8_t staging[kStagingBytes];
  Phase phases[3][kPhaseSlots];  // the current and the next, for each role (PhaseWalk)
  uint64_t full[kRingEntries], empty[kRingEntries];
  uint64_t exchange_full[kExchangeBuffers];
  uint64_t exchange_free[kClusterBlocks][kExchangeBuffers];  // of the finishers of the cluster
  uint64_t experts_chosen, slots_known;                      // of ExpertChoice: the set; all of it
  Program program;  // a parameter's address would cost every thread a copy of it
  uint32_t entry_offset[kRingEntries];
  ExpertChoice choices[kBandsMax];
  ExpertList lists[kBandsMax];
  RoundState state;
  RowChoice best[kFinisherWarps][kBandRows];
  float scale[kRowsMax];
  // The block's tiles of the residual stream, tile i at i % kOwnedTilesMax, as pairs of bf16.
  uint32_t owned[kBandsMax][kOwnedTilesMax][kBandRows][kTileRows / 2];
  Places places;
  volatile uint32_t newest_input;     // number of the consumers' last phase whose input is there
  volatile uint32_t newest_scales;    // or whose rows' scales are, for the router
  volatile uint32_t phases_finished;  // by the finishers, of those that have work for them
  volatile uint32_t exits;            // the producer's sign to leave
};
static_assert(sizeof(Shared) <= 227 * 1024);
static_assert(kRingBytes % 128 == 0);  // behind it lie operands of tensor cores
static_assert(sizeof(Shared::exchange) + kStagingBytes >= kAttentionScratchBytes);

// The block's shared memory as an address that the compiler does not know to be constant: in a
// cluster it would read a special register each time to make it up.
__device__ __forceinline__ uint32_t SharedBase() {
  extern __shared__ __align__(128) uint8_t shared_bytes[];
  uint32_t base;
  asm volatile("mov.u32 %0, %1;" : "=r"(base) : "r"(SharedAddress(shared_bytes)));
  return base;
}

// Passed by value: a reference to it would make every use of it a load.
struct Block {
  int rank;  // in the cluster
  int cluster, num_clusters;
  int index, num_blocks;

  uint32_t shared_base;

  __device__ __forceinline__ Shared& shared() const {
    return *static_cast<Shared*>(__cvta_shared_to_generic(shared_base));
  }
  __device__ __forceinline__ const Program& program() const { return shared().program; }
  // The exchange and the staging area, kAttentionScratchBytes.
  __device__ __forceinline__ uint8_t* AttentionScratch() const {
    return reinterpret_cast<uint8_t*>(shared().exchange);
  }
  // The phase that the warp has entered: in shared memory, because across the work of a phase a
  // register would not hold it, and what spills comes back from L2.
  __device__ __forceinline__ int Entered() const {
    return shared().places.phase[Thread() / kWarpLanes];
  }
  // Its descriptor; `role` is the warp's.
  __device__ __forceinline__ const Phase& PhaseOf(Role role) const {
    return shared().phases[static_cast<int>(role)][SlotOf(Entered())];
  }
  // A round may have an odd number of phases, so its first has a slot of its own.
  static __device__ __forceinline__ int SlotOf(int phase) { return phase == 0 ? 2 : phase % 2; }
  // How often something has happened since the kernel's start: `of_round` times in every round,
  // `before` times in this one. Not for the producer, which runs ahead of the round.
  __device__ __forceinline__ uint32_t SinceStart(uint32_t Tally::*of, const Phase& phase) const {
    return shared().state.round * (program().of_round.*of) + phase.before.*of;
  }

  template <typename Ready>
  __device__ __forceinline__ void Wait(WaitsFor what, Ready ready) const {
    WaitUntil(program(), shared().places, what, ready);
  }
  __device__ __forceinline__ void WaitBarrier(WaitsFor what, uint64_t* barrier,
                                              uint32_t parity) const {
    Wait(what, [&] { return IsDone(barrier, parity); });
  }
  __device__ __forceinline__ uint32_t* Counter(int i) const { return program().counters + i * 32; }
  // One thread; others learn of it by a barrier.
  __device__ __forceinline__ void WaitForArrivals(int counter, uint32_t target) const {
    if (counter < 0) return;
    const uint32_t* const word = Counter(counter);
    const uint32_t wanted = shared().state.round * program().totals[counter] + target;
    Wait(WaitsFor::kOtherBlocks,
         [&] { return static_cast<int32_t>(PollCounter(word) - wanted) >= 0; });
  }
  // Phases since the start, this one not counted.
  __device__ __forceinline__ uint32_t NumberOf(const Phase& phase) const {
    return shared().state.round * program().num_phases + phase.index;
  }
  // Until the consumers have the phase's input. Finishers that had nothing to do would arrive
  // before it otherwise, phases ahead, at counters that are still in use.
  __device__ __forceinline__ void WaitForInput(const Phase& phase) const {
    const uint32_t number = NumberOf(phase);
    Wait(WaitsFor::kConsumers, [&] { return HasInput(number); });
  }
  __device__ __forceinline__ void WaitForScales(const Phase& phase) const {
    const uint32_t number = NumberOf(phase);
    Wait(WaitsFor::kConsumers,
         [&] { return static_cast<int32_t>(shared().newest_scales - number) >= 0; });
  }
  __device__ __forceinline__ bool HasInput(uint32_t number) const {
    return static_cast<int32_t>(shared().newest_input - number) >= 0;
  }
  // Until the finishers are done with all phases before `phase`.
  __device__ __forceinline__ void WaitForFinishers(const Phase& phase) const {
    const uint32_t wanted = SinceStart(&Tally::products, phase);
    Wait(WaitsFor::kFinishers, [&] { return FinishersAreDone(wanted); });
  }
  // Whether they are done with `count` phases since the start.
  __device__ __forceinline__ bool FinishersAreDone(uint32_t count) const {
    return static_cast<int32_t>(shared().phases_finished - count) >= 0;
  }
  __device__ __forceinline__ void Stamp(int phase, TraceStamp stamp) const {
    uint64_t* const trace = program().trace;
    if (trace == nullptr) return;
    const int64_t row = static_cast<int64_t>(index) * program().num_phases + phase;
    trace[row * kTraceStamps + stamp] = GlobalNanoseconds();
  }
};

// Of a kernel for passes of exactly so many bands. There is one for each number: with one band the
// phases that everybody waits for are 1.3 % of a round shorter where they do not ask which it is.
template <int kBands>
struct BandBlock : Block {
  static __device__ __forceinline__ int BandOf(const Phase& phase) {
    return kBands == 1 ? 0 : phase.band;
  }
};

// ---- Walks over descriptors. A role reads phase i from shared memory while phase i + 1 arrives.

template <Role kRole, int kFirstWarp, int kNumWarps>
class PhaseWalk {
 public:
  __device__ explicit PhaseWalk(const Block& block) : block_(block) { Fetch(0); }
  // The role's threads call it together; `sync` is their barrier.
  template <typename Sync>
  __device__ void Enter(int phase, Sync sync) const {
    WaitCopies<0>();
    sync();
    if (Thread() % kWarpLanes == 0) block_.shared().places.phase[Thread() / kWarpLanes] = phase;
    Fetch(phase + 1 < block_.program().num_phases ? phase + 1 : 0);
    __syncwarp();
  }

 private:
  __device__ void Fetch(int phase) const {
    constexpr int kPieces = sizeof(Phase) / 16;
    auto* const to = reinterpret_cast<uint8_t*>(
        &block_.shared().phases[static_cast<int>(kRole)][Block::SlotOf(phase)]);
    const auto* const from = reinterpret_cast<const uint8_t*>(block_.program().phases + phase);
    for (int i = Thread() - kFirstWarp * kWarpLanes; i < kPieces; i += kNumWarps * kWarpLanes)
      CopyAsync16(to + i * 16, from + i * 16, true);
    CommitCopies();
  }

  const Block block_;
};

// ---- Who multiplies what

// Blocks of two slabs of a pass that this thread block multiplies, and all of the pass.
struct Share {
  int first, count;
  int pass_first, pass_count;
};
__device__ __forceinline__ int NumPasses(int num_slabs) {
  return (num_slabs + 2 * kPassBlocks - 1) / (2 * kPassBlocks);
}
__device__ __forceinline__ Share ShareOf(int num_slabs, int pass, int rank) {
  Share share;
  share.pass_first = pass * kPassBlocks;
  share.pass_count = min(kPassBlocks, (num_slabs + 1) / 2 - share.pass_first);
  const int even = (share.pass_count + kClusterBlocks - 1) / kClusterBlocks;
  const int begin = min(rank * even, share.pass_count);
  share.count = min(even, share.pass_count - begin);
  share.first = share.pass_first + begin;
  return share;
}
// Slabs of the share.
__device__ __forceinline__ int ShareSlabs(const Share& share, int num_slabs) {
  return min(2 * share.count, num_slabs - 2 * share.first);
}

// Blocks of slabs in one entry of the ring: 16 to 33 KB, so that the ring holds several.
constexpr int PieceBlocks(WeightFormat format) { return format == WeightFormat::kMxfp4 ? 12 : 4; }
static_assert(PieceBlocks(WeightFormat::kMxfp4) >= kShareBlocksMax);  // an expert's tile is one
__device__ __forceinline__ int NumPieces(const Share& share, WeightFormat format) {
  return (share.count + PieceBlocks(format) - 1) / PieceBlocks(format);
}

// kConsumerWarps / n, for 0 < n <= kConsumerWarps.
__device__ __forceinline__ int WarpsFor(int n) {
  static_assert(kConsumerWarps == 12);
  return static_cast<int>(0x11111122346c0ull >> (4 * n) & 15);
}

// Arrivals of reader `reader` of an entry that `num_readers` warps read: kConsumerWarps of all.
__device__ __forceinline__ uint32_t EntryArrivals(int num_readers, int reader) {
  const uint32_t even = WarpsFor(num_readers);
  return reader == 0 ? kConsumerWarps - even * (num_readers - 1) : even;
}

// Tiles that use one exchange buffer one after the other are this many numbers apart (TileWalk):
// the same warp must multiply both, so a team's tiles are a divisor of it apart.
constexpr int kExchangeCycle = kExchangeBuffers * kClusterBlocks;

// Consumer warps in teams of one warp per block of the share; teams take tiles in turn.
struct Team {
  int index, num_teams;
  int part;  // the warp's block of the share
  bool works;
};
__device__ __forceinline__ Team TeamOf(int warp, int parts) {
  static_assert(kExchangeCycle == 6);
  Team team = {0, 1, 0, false};
  if (parts == 0) return team;
  const int most = WarpsFor(parts);
  team.num_teams = most >= 6 ? 6 : most >= 3 ? 3 : most;
  team.index = Quotient(warp, parts);
  team.part = warp - team.index * parts;
  team.works = team.index < team.num_teams;
  return team;
}

// The tiles of a cluster in the order in which its blocks multiply them: numbers [0, end), the
// blocks' in turn. Where one of them finishes fewer tiles, its numbers are missing in the end.
// Tiles that use one exchange buffer one after the other are a multiple of kExchangeCycle numbers
// apart.
class TileWalk {
 public:
  __device__ __forceinline__ TileWalk(const Block& block, TileOrder order, int num_tiles)
      : block_(block), order_(order), num_tiles_(num_tiles) {
    if (order == TileOrder::kDealt) {
      end_ = Quotient(num_tiles - block.cluster + block.num_clusters - 1, block.num_clusters);
      for (int owner = 0; owner < kClusterBlocks; ++owner)
        counts_[owner] = (end_ - owner + kClusterBlocks - 1) / kClusterBlocks;
      return;
    }
    const int num_chunks = NumRouterChunks(num_tiles);
    each_ = Quotient(num_chunks, block.num_blocks);
    extra_ = num_chunks - each_ * block.num_blocks;
    for (int owner = 0; owner < kClusterBlocks; ++owner) {
      counts_[owner] = FirstOwned(owner + 1) - FirstOwned(owner);
      end_ = max(end_, counts_[owner] * kClusterBlocks);
    }
  }
  __device__ __forceinline__ int end() const { return end_; }
  __device__ __forceinline__ bool Exists(int i) const { return Place(i) < OwnedCount(Owner(i)); }
  // Tiles before number i; of number end, all of them.
  __device__ __forceinline__ int CountBefore(int i) const {
    int count = 0;
#pragma unroll
    for (int owner = 0; owner < kClusterBlocks; ++owner)
      count += min((i + kClusterBlocks - 1 - owner) / kClusterBlocks, counts_[owner]);
    return count;
  }
  __device__ __forceinline__ int Owner(int i) const { return i % kClusterBlocks; }
  __device__ __forceinline__ int Place(int i) const {
    return i / kClusterBlocks;
  }  // of the owner's
  __device__ __forceinline__ int Tile(int i) const { return TileAt(Owner(i), Place(i)); }
  __device__ __forceinline__ int TileAt(int owner, int place) const {
    return order_ == TileOrder::kDealt
               ? block_.cluster + (place * kClusterBlocks + owner) * block_.num_clusters
               : FirstOwned(owner) + place;
  }
  // kOwned: FirstOwned(kClusterBlocks) ends the cluster's tiles.
  __device__ __forceinline__ int FirstOwned(int owner) const {
    const int index = block_.cluster * kClusterBlocks + owner;
    return min((index * each_ + min(index, extra_)) * kRouterChunkTiles, num_tiles_);
  }
  __device__ __forceinline__ int OwnedCount(int owner) const {
    int count = counts_[0];
#pragma unroll
    for (int i = 1; i < kClusterBlocks; ++i) count = owner == i ? counts_[i] : count;
    return count;
  }

 private:
  const Block block_;
  const TileOrder order_;
  const int num_tiles_;
  int each_ = 0, extra_ = 0;    // kOwned: a block's chunks, and blocks that have one more
  int counts_[kClusterBlocks];  // tiles that each block finishes
  int end_ = 0;
};

// ---- The exchange: partial sums of a tile on their way to its finisher

// Where a tile's partials go, and the phase of `exchange_free` that makes it free.
struct ExchangeSlot {
  uint32_t owner, buffer, parity;
  __device__ __forceinline__ BarrierPhase Free(const Block& block) const {
    return {SharedAddress(&block.shared().exchange_free[owner][buffer]), parity};
  }
};
// How many tiles each block of the cluster has finished since the kernel's start: says which buffer
// a tile takes and how often that was used before. All roles count alike.
class ExchangeClock {
 public:
  // Of tile number i.
  __device__ __forceinline__ ExchangeSlot SlotOf(uint32_t i) const {
    const uint32_t owner = i % kClusterBlocks, use = Use(owner, i / kClusterBlocks);
    return {owner, use % kExchangeBuffers, use / kExchangeBuffers & 1};
  }
  __device__ __forceinline__ uint32_t Use(int owner, int place) const {
    uint32_t finished = finished_[0];
#pragma unroll
    for (int i = 1; i < kClusterBlocks; ++i) finished = owner == i ? finished_[i] : finished;
    return finished + place;
  }
  __device__ __forceinline__ void Advance(const TileWalk& walk) {
#pragma unroll
    for (int i = 0; i < kClusterBlocks; ++i) finished_[i] += walk.OwnedCount(i);
  }

 private:
  uint32_t finished_[kClusterBlocks] = {};
};

// Sends the lane's part of a partial when the slot is free. `index`: of the block of slabs in its
// pass.
__device__ __forceinline__ void SendPartial(const Block& block, const ExchangeSlot& slot, int index,
                                            float4 partial, int lane) {
  Shared& shared = block.shared();
  StoreInCluster(&shared.exchange[slot.buffer][index][lane], partial,
                 &shared.exchange_full[slot.buffer], slot.owner);
}
// A finisher warp waits for its tile's partials, and gives the buffer back.
__device__ __forceinline__ int ReceivePartials(const Block& block, uint32_t use, uint32_t bytes,
                                               int lane) {
  const int buffer = use % kExchangeBuffers;
  uint64_t* const full = &block.shared().exchange_full[buffer];
  if (lane == 0) ArriveExpecting(full, bytes);
  __syncwarp();
  block.WaitBarrier(WaitsFor::kExchangeFull, full, use / kExchangeBuffers & 1);
  __syncwarp();
  return buffer;
}
__device__ __forceinline__ void FreeExchange(const Block& block, int buffer, int lane) {
  __syncwarp();
  if (lane < kClusterBlocks) {
    ArriveRelaxedInCluster(&block.shared().exchange_free[block.rank][buffer], lane);
  }
}

}  // namespace ultraspeed::kernels::cuda::resident
