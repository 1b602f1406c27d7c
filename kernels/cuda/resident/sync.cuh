// How the warps of a block, the blocks of a cluster and all blocks wait for each other.
//
// Every wait is bounded: when one lasts longer than Program::wait_ns_max, the block writes down
// where its warps stand, raises the abort word, gives the others time to do the same, and traps.
#pragma once

#include "kernels/cuda/device/copy.cuh"
#include "kernels/cuda/resident/program.h"

namespace ultraspeed::kernels::cuda::resident {

// The thread's index, read anew at every use. The compiler would take everything that follows from
// threadIdx out of the loop over phases, where there are no registers to keep it.
__device__ __forceinline__ int Thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// ---- Roles of a block's warps (block.cuh)

enum class Role : int { kProducer, kConsumer, kFinisher };
constexpr int kConsumerWarps = kConsumerThreads / 32;
constexpr int kProducerWarp = kConsumerWarps;
constexpr int kFirstFinisherWarp = kProducerWarp + 1;
constexpr int kFinisherWarps = 3;
constexpr int kFinisherThreads = kFinisherWarps * 32;
constexpr int kWorkerThreads = kConsumerThreads + kFinisherThreads;
constexpr int kThreads = (kFirstFinisherWarp + kFinisherWarps) * 32;

// ---- Named barriers of a block (0 is __syncthreads)

constexpr int kConsumerBarrier = 1;
constexpr int kFinisherBarrier = 2;
constexpr int kWorkerBarrier = 3;  // consumers and finishers
constexpr int kScoreBarrier = 4;   // those who score (attention_segments.cuh)

// Lanes that waited for something alone join their warp first.
template <int kId, int kThreads>
__device__ __forceinline__ void NamedBarrier() {
  __syncwarp();
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
}

// ---- mbarriers

__device__ __forceinline__ void InitBarrierCount(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(count)
               : "memory");
}
__device__ __forceinline__ void Arrive(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(count)
               : "memory");
}
// A phase of a barrier in shared memory, by its parity.
struct BarrierPhase {
  uint32_t address, parity;
};
__device__ __forceinline__ bool IsDone(BarrierPhase phase) {
  uint32_t done;
  asm volatile(
      "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; "
      "selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(phase.address), "r"(phase.parity)
      : "memory");
  return done != 0;
}
__device__ __forceinline__ bool IsDone(uint64_t* barrier, uint32_t parity) {
  return IsDone({SharedAddress(barrier), parity});
}

// ---- Shared memory of the cluster's other blocks

__device__ __forceinline__ uint32_t ClusterAddress(const void* shared, uint32_t block) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(SharedAddress(shared)), "r"(block));
  return address;
}
// For a place that was only read: nothing has to be seen.
__device__ __forceinline__ void ArriveRelaxedInCluster(uint64_t* barrier, uint32_t block) {
  asm volatile("mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%0];" ::"r"(
                   ClusterAddress(barrier, block))
               : "memory");
}
// Stores that complete bytes of `barrier`, both at the same offsets in block `block`'s memory.
__device__ __forceinline__ void StoreInCluster(float4* place, float4 v, uint64_t* barrier,
                                               uint32_t block) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(ClusterAddress(place, block)),
      "r"(__float_as_uint(v.x)), "r"(__float_as_uint(v.y)), "r"(__float_as_uint(v.z)),
      "r"(__float_as_uint(v.w)), "r"(ClusterAddress(barrier, block))
      : "memory");
}
__device__ __forceinline__ void StoreInCluster(float* place, float v, uint64_t* barrier,
                                               uint32_t block) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
          ClusterAddress(place, block)),
      "r"(__float_as_uint(v)), "r"(ClusterAddress(barrier, block))
      : "memory");
}
__device__ __forceinline__ void ClusterBarrier() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// ---- Counters that all blocks see

__device__ __forceinline__ void ArriveEverywhere(uint32_t* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
// Tells that data which is its own flag is on its way: orders nothing, so it waits for nothing.
__device__ __forceinline__ void Announce(uint32_t* counter) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
// What others wrote before they arrived is read past L1 everywhere (__ldcg), so a poll need not be
// an acquire, which would empty L1 every time.
__device__ __forceinline__ uint32_t PollCounter(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}
__device__ __forceinline__ uint32_t LoadFromHost(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}
// In no order with other words.
__device__ __forceinline__ float LoadAloneFromHost(const float* word) {
  float value;
  asm volatile("ld.relaxed.sys.global.f32 %0, [%1];" : "=f"(value) : "l"(word));
  return value;
}
__device__ __forceinline__ void StoreToHost(uint32_t* word, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}
__device__ __forceinline__ uint64_t GlobalNanoseconds() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
  return ns;
}

// ---- Bounded waits

enum class WaitsFor : int32_t {
  kNothing,
  kRoomInRing,
  kWeights,
  kExpertChoice,
  kExchangeFull,
  kExchangeFree,
  kOtherBlocks,
  kFinishers,
  kPeers,
  kExpertRows,
  kConsumers,
  kMasks,
};

struct Places {  // where the warps of this block stand
  volatile int32_t phase[kThreads / 32];
};

// Never returns, so that a wait saves no registers for it.
[[noreturn]] static __device__ __noinline__ void GiveUp(const Program& program,
                                                        const Places& places, WaitsFor what) {
  StuckReport::Place& place = program.stuck->places[blockIdx.x];
  constexpr int kWarpOfRole[] = {kProducerWarp, 0, kFirstFinisherWarp};
#pragma unroll
  for (int i = 0; i < 3; ++i) place.phase[i] = places.phase[kWarpOfRole[i]];
  place.waits_for = static_cast<int32_t>(what);
  program.stuck->is_stuck = 1;
  __threadfence_system();
  atomicExch(program.abort_word, 1u);
  constexpr uint64_t kTimeForTheOthersNs = 50'000'000;
  const uint64_t begin = GlobalNanoseconds();
  while (GlobalNanoseconds() - begin < kTimeForTheOthersNs) __nanosleep(1000);
  __trap();
  __builtin_unreachable();
}

template <typename Ready>
__device__ __forceinline__ void WaitUntil(const Program& program, const Places& places,
                                          WaitsFor what, Ready ready) {
  constexpr uint32_t kSpinsPerCheck = 8192;
  uint64_t since = 0;  // of the first check
#pragma unroll 1
  for (uint32_t spins = 1; !ready(); ++spins) {
    if (spins % kSpinsPerCheck != 0) continue;
    const uint64_t now = GlobalNanoseconds();
    if (since == 0) since = now;
    const bool others_stuck = *reinterpret_cast<volatile uint32_t*>(program.abort_word) != 0;
    if (others_stuck || now - since >= program.wait_ns_max) GiveUp(program, places, what);
  }
}

}  // namespace ultraspeed::kernels::cuda::resident
