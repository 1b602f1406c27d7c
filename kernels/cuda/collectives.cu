// Math: collectives.h. Mapping: a thread per 16 bytes of a part, strided over at most one block a
// multiprocessor, so that all blocks of an operation run at once and none waits for one that cannot
// start. Bytes over NVLink: 2 (sum) or 4 (gather) a number to each other rank, each way.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/collectives.h"
#include "kernels/cuda/device/flagged_words.cuh"
#include "kernels/cuda/launch.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksMax = 128;
constexpr int kWords = 4;              // of a vector
constexpr int kSumCount = 2 * kWords;  // numbers of a vector of a sum

__device__ __forceinline__ void StoreToPeer(uint32_t* place, uint4 v) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(place), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}
__device__ __forceinline__ uint64_t Nanoseconds() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
  return ns;
}

// The part of one vector, and what comes of all ranks'. `first`: of the piece, in numbers.
struct SumOperation {
  float* data;
  size_t count;

  __device__ __forceinline__ float Number(size_t i) const { return i < count ? data[i] : 0.0f; }
  __device__ __forceinline__ uint4 Load(uint32_t vector) const {
    const size_t i = static_cast<size_t>(vector) * kSumCount;
    if (i + kSumCount <= count) {
      const auto* const from = reinterpret_cast<const float4*>(data + i);
      const float4 a = from[0], b = from[1];
      return {FlaggedWord(a.x, a.y), FlaggedWord(a.z, a.w), FlaggedWord(b.x, b.y),
              FlaggedWord(b.z, b.w)};
    }
    return {FlaggedWord(Number(i), Number(i + 1)), FlaggedWord(Number(i + 2), Number(i + 3)),
            FlaggedWord(Number(i + 4), Number(i + 5)), FlaggedWord(Number(i + 6), Number(i + 7))};
  }
  template <typename PartOf>
  __device__ __forceinline__ void Store(uint32_t vector, int num_ranks, PartOf part_of) const {
    float sum[kSumCount];
#pragma unroll
    for (int r = 0; r < kPeersMax; ++r) {
      if (r >= num_ranks) break;
      const uint4 part = part_of(r);
      const uint32_t words[kWords] = {part.x, part.y, part.z, part.w};
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const float low = __uint_as_float(words[w] << 16);
        const float high = __uint_as_float(words[w] & 0xffff0000u);
        sum[2 * w] = r == 0 ? low : __fadd_rn(sum[2 * w], low);
        sum[2 * w + 1] = r == 0 ? high : __fadd_rn(sum[2 * w + 1], high);
      }
    }
    const size_t i = static_cast<size_t>(vector) * kSumCount;
    if (i + kSumCount <= count) {
      auto* const to = reinterpret_cast<float4*>(data + i);
      to[0] = {sum[0], sum[1], sum[2], sum[3]};
      to[1] = {sum[4], sum[5], sum[6], sum[7]};
      return;
    }
#pragma unroll
    for (int k = 0; k < kSumCount; ++k) {
      if (i + k < count) data[i + k] = sum[k];
    }
  }
};

struct GatherOperation {
  const float* part;
  size_t first, count;  // of the piece's numbers, in `part`
  int columns, out_columns;
  float* out;

  __device__ __forceinline__ uint32_t Word(size_t i) const {
    return i < count ? FlaggedWord(__float_as_uint(part[first + i])) : 0u;
  }
  __device__ __forceinline__ uint4 Load(uint32_t vector) const {
    const size_t i = static_cast<size_t>(vector) * kWords;
    return {Word(i), Word(i + 1), Word(i + 2), Word(i + 3)};
  }
  template <typename PartOf>
  __device__ __forceinline__ void Store(uint32_t vector, int num_ranks, PartOf part_of) const {
    const size_t i = static_cast<size_t>(vector) * kWords;
#pragma unroll
    for (int r = 0; r < kPeersMax; ++r) {
      if (r >= num_ranks) break;
      const uint4 words = part_of(r);
      const uint32_t values[kWords] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int k = 0; k < kWords; ++k) {
        if (i + k >= count) break;
        const size_t at = first + i + k;
        out[at / columns * out_columns + static_cast<size_t>(r) * columns + at % columns] =
            __uint_as_float(values[k]);
      }
    }
  }
};

// What arrived of one vector: a load per rank, all requested before the first is looked at.
struct Arrived {
  uint4 parts[kPeersMax];
  __device__ __forceinline__ uint4 operator()(int r) const { return parts[r]; }
};

// Gives up after wait_ns_max, or when another thread has.
__device__ __noinline__ bool GivesUp(const PeerInbox& peers, uint32_t operation, int peer,
                                     uint64_t& since) {
  const uint64_t now = Nanoseconds();
  if (since == 0) since = now;
  if (*reinterpret_cast<volatile uint32_t*>(&peers.turn->gave_up) != 0) return true;
  if (now - since < peers.wait_ns_max) return false;
  if (atomicExch(&peers.turn->gave_up, 1u) == 0) {
    peers.report->peer = peer;
    peers.report->operation = operation;
    __threadfence_system();
    *reinterpret_cast<volatile uint32_t*>(&peers.report->is_stuck) = 1;
  }
  return true;
}

__device__ __forceinline__ void Await(const PeerInbox& peers, const uint32_t* first,
                                      uint32_t operation, Arrived& arrived) {
  constexpr uint32_t kSpinsPerCheck = 4096;
  uint64_t since = 0;
  for (uint32_t spins = 1;; ++spins) {
    int missing = -1;
#pragma unroll
    for (int r = 0; r < kPeersMax; ++r) {
      if (r >= peers.num_ranks) break;
      arrived.parts[r] = PollFour(first + static_cast<size_t>(r) * peers.capacity);
    }
#pragma unroll
    for (int r = 0; r < kPeersMax; ++r) {
      if (r >= peers.num_ranks) break;
      if (!HasArrived(arrived.parts[r])) missing = r;
    }
    if (missing < 0) return;
    if (spins % kSpinsPerCheck == 0 && GivesUp(peers, operation, missing, since)) return;
  }
}

template <typename Operation>
__global__ void __launch_bounds__(kThreads)
    ExchangeKernel(const __grid_constant__ PeerInbox peers, const Operation operation,
                   uint32_t num_vectors) {
  const uint32_t number = *reinterpret_cast<volatile uint32_t*>(&peers.turn->operation);
  const uint32_t before = *reinterpret_cast<volatile uint32_t*>(&peers.turn->num_vectors);
  const size_t inbox_words = static_cast<size_t>(peers.num_ranks) * peers.capacity;
  const size_t turn = number % 3 * inbox_words;
  const uint32_t first = blockIdx.x * kThreads + threadIdx.x, stride = gridDim.x * kThreads;
  for (uint32_t i = first; i < num_vectors; i += stride) {
    const uint4 mine = operation.Load(i);
    for (int r = 0; r < peers.num_ranks; ++r) {
      StoreToPeer(peers.push[r] + turn + static_cast<size_t>(i) * kWords, mine);
    }
  }
  uint32_t* const emptied = peers.inbox + (number + 2) % 3 * inbox_words;
  for (uint32_t i = first; i < before; i += stride) {
    for (int r = 0; r < peers.num_ranks; ++r) {
      StoreToPeer(
          emptied + static_cast<size_t>(r) * peers.capacity + static_cast<size_t>(i) * kWords,
          {kNotArrived, kNotArrived, kNotArrived, kNotArrived});
    }
  }
  for (uint32_t i = first; i < num_vectors; i += stride) {
    Arrived arrived;
    Await(peers, peers.inbox + turn + static_cast<size_t>(i) * kWords, number, arrived);
    operation.Store(i, peers.num_ranks, arrived);
  }
  // The last block ends the turn: by then every block has read whose turn it was.
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence();
  if (atomicAdd(&peers.turn->num_blocks_done, 1u) + 1 != gridDim.x) return;
  peers.turn->num_blocks_done = 0;
  peers.turn->num_vectors = num_vectors;
  peers.turn->operation = number + 1;
}

// Threads of a kernel over `count` items.
dim3 GridOf(size_t count, int threads, size_t blocks_max) {
  return dim3(
      static_cast<unsigned>(std::clamp<size_t>((count + threads - 1) / threads, 1, blocks_max)));
}

template <typename Operation>
void Exchange(const PeerInbox& peers, const Operation& operation, size_t num_vectors,
              cudaStream_t stream) {
  ExchangeKernel<<<GridOf(num_vectors, kThreads, kBlocksMax), kThreads, 0, stream>>>(
      peers, operation, static_cast<uint32_t>(num_vectors));
  CheckLaunch("ExchangeKernel");
}

__global__ void __launch_bounds__(kThreads) FillKernel(uint4* words, size_t count) {
  const size_t stride = static_cast<size_t>(gridDim.x) * kThreads;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride)
    words[i] = {kNotArrived, kNotArrived, kNotArrived, kNotArrived};
}

__global__ void __launch_bounds__(kThreads)
    RoundPartKernel(const SumOperation operation, uint4* words, size_t num_vectors) {
  const size_t stride = static_cast<size_t>(gridDim.x) * kThreads;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < num_vectors;
       i += stride)
    words[i] = operation.Load(static_cast<uint32_t>(i));
}

__global__ void __launch_bounds__(kThreads)
    AddPartsKernel(const SumOperation operation, const uint4* words, int num_ranks,
                   size_t num_vectors) {
  const size_t stride = static_cast<size_t>(gridDim.x) * kThreads;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < num_vectors;
       i += stride) {
    operation.Store(static_cast<uint32_t>(i), num_ranks,
                    [&](int r) { return words[static_cast<size_t>(r) * num_vectors + i]; });
  }
}

__global__ void __launch_bounds__(kThreads)
    PlacePartsKernel(const float* parts, int num_ranks, int rows, int columns, float* out) {
  const size_t count = static_cast<size_t>(rows) * columns;
  const size_t stride = static_cast<size_t>(gridDim.x) * kThreads;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < num_ranks * count;
       i += stride) {
    const size_t rank = i / count, row = i % count / columns, column = i % columns;
    out[(row * num_ranks + rank) * columns + column] =
        __uint_as_float(FlaggedWord(__float_as_uint(parts[i])));
  }
}

constexpr size_t kWideBlocks = 1024;

void CheckPeers(const PeerInbox& peers) {
  KERNELS_CHECK(peers.num_ranks, <=, kPeersMax);
  KERNELS_CHECK(peers.capacity % kWords, ==, 0);
  KERNELS_CHECK(peers.capacity, >, 0u);
}

}  // namespace

size_t PeerInboxBytes(int num_ranks, size_t capacity) {
  return 3 * static_cast<size_t>(num_ranks) * capacity * sizeof(uint32_t);
}

void EmptyPeerInbox(const PeerInbox& peers, cudaStream_t stream) {
  CheckPeers(peers);
  const size_t count = PeerInboxBytes(peers.num_ranks, peers.capacity) / sizeof(uint4);
  FillKernel<<<GridOf(count, kThreads, kWideBlocks), kThreads, 0, stream>>>(
      reinterpret_cast<uint4*>(peers.inbox), count);
  CheckLaunch("FillKernel");
  CheckCuda(cudaMemsetAsync(peers.turn, 0, sizeof(*peers.turn), stream), "PeerTurn");
}

void SumOverPeers(const PeerInbox& peers, float* data, size_t count, cudaStream_t stream) {
  CheckPeers(peers);
  KERNELS_CHECK(reinterpret_cast<uintptr_t>(data) % 16, ==, 0u);
  const size_t piece = 2 * peers.capacity;
  for (size_t begin = 0; begin < count; begin += piece) {
    const SumOperation operation = {.data = data + begin, .count = std::min(piece, count - begin)};
    Exchange(peers, operation, SumWords(operation.count) / kWords, stream);
  }
}

void GatherOverPeers(const PeerInbox& peers, const float* part, int rows, int columns, float* out,
                     cudaStream_t stream) {
  CheckPeers(peers);
  const size_t count = static_cast<size_t>(rows) * columns;
  for (size_t begin = 0; begin < count; begin += peers.capacity) {
    const GatherOperation operation = {.part = part,
                                       .first = begin,
                                       .count = std::min(peers.capacity, count - begin),
                                       .columns = columns,
                                       .out_columns = peers.num_ranks * columns,
                                       .out = out};
    Exchange(peers, operation, (operation.count + kWords - 1) / kWords, stream);
  }
}

size_t SumWords(size_t count) { return (count + kSumCount - 1) / kSumCount * kWords; }

void RoundPart(const float* data, size_t count, uint32_t* words, cudaStream_t stream) {
  if (count == 0) return;
  const size_t num_vectors = SumWords(count) / kWords;
  RoundPartKernel<<<GridOf(num_vectors, kThreads, kWideBlocks), kThreads, 0, stream>>>(
      {.data = const_cast<float*>(data), .count = count}, reinterpret_cast<uint4*>(words),
      num_vectors);
  CheckLaunch("RoundPartKernel");
}

void AddParts(const uint32_t* words, int num_ranks, size_t count, float* sum, cudaStream_t stream) {
  KERNELS_CHECK(num_ranks, <=, kPeersMax);
  if (count == 0) return;
  const size_t num_vectors = SumWords(count) / kWords;
  AddPartsKernel<<<GridOf(num_vectors, kThreads, kWideBlocks), kThreads, 0, stream>>>(
      {.data = sum, .count = count}, reinterpret_cast<const uint4*>(words), num_ranks, num_vectors);
  CheckLaunch("AddPartsKernel");
}

void PlaceParts(const float* parts, int num_ranks, int rows, int columns, float* out,
                cudaStream_t stream) {
  const size_t count = static_cast<size_t>(num_ranks) * rows * columns;
  if (count == 0) return;
  PlacePartsKernel<<<GridOf(count, kThreads, kWideBlocks), kThreads, 0, stream>>>(
      parts, num_ranks, rows, columns, out);
  CheckLaunch("PlacePartsKernel");
}

}  // namespace ultraspeed::kernels::cuda
