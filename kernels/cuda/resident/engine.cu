// The resident decode engine: one kernel that holds every multiprocessor and runs rounds.
//
// Draft, verify, choose, accept and commit happen here; the host writes a limit and reads finished
// rounds (program.h). Grid: as many clusters of two blocks as fit, one block a multiprocessor.
// Warps have roles (block.cuh); each role walks the phases at its own pace. Weights are bounded by
// memory: the bytes of a round are those of all matrices and of the chosen experts, once.
#include <iterator>

#include "kernels/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/resident/attend.cuh"
#include "kernels/cuda/resident/choose_whole_row.cuh"
#include "kernels/cuda/resident/commit.cuh"
#include "kernels/cuda/resident/draft_chain.cuh"
#include "kernels/cuda/resident/moe.cuh"

namespace ultraspeed::kernels::cuda::resident {
namespace {

__device__ bool HasFinishersWork(PhaseKind kind) {
  return kind == PhaseKind::kProduct || kind == PhaseKind::kMoeUp || kind == PhaseKind::kMoeDown;
}

// ---- Roles

template <int kBands>
__device__ __forceinline__ void Produce(const BandBlock<kBands>& block) {
  const int lane = Thread() % kWarpLanes;
  const PhaseWalk<Role::kProducer, kProducerWarp, 1> walk(block);
  RingWriter ring(block, lane);
  uint32_t moe_layers = 0, first = 0;  // number of the round's first phase
  bool runs_on = true;
  while (runs_on) {
    for (int i = 0; runs_on && i < block.program().num_phases; ++i) {
      walk.Enter(i, [] { __syncwarp(); });
      const Phase& phase = block.PhaseOf(Role::kProducer);
      switch (phase.kind) {
        case PhaseKind::kProduct:
          runs_on = StreamProduct(block, phase, first + i - block.BandOf(phase), ring);
          break;
        case PhaseKind::kMoeUp:
          runs_on = StreamMoeUp(block, phase, first + i, ring, moe_layers);
          moe_layers += block.BandOf(phase) == 0;
          break;
        case PhaseKind::kMoeDown:
          runs_on = StreamMoeDown(block, phase, ring, lane);
          break;
        default:
          break;
      }
      __syncwarp();
    }
    first += block.program().num_phases;
  }
  ring.Drain();
  WaitCopies<0>();
  __syncwarp();
}

template <int kBands, bool kChains>
__device__ __forceinline__ void Consume(const BandBlock<kBands>& block) {
  const auto barrier = [] { NamedBarrier<kConsumerBarrier, kConsumerThreads>(); };
  const PhaseWalk<Role::kConsumer, 0, kConsumerWarps> walk(block);
  ConsumerClock clock;
  do {
    for (int i = 0; i < block.program().num_phases; i = block.Entered() + 1) {
      walk.Enter(i, barrier);
      if (Thread() == 0) block.Stamp(i, kTraceBegin);
      switch (block.PhaseOf(Role::kConsumer).kind) {
        case PhaseKind::kEmbed:
          Embed(block);
          break;
        case PhaseKind::kProduct:
        case PhaseKind::kMoeUp:
          ConsumeProduct(block, block.PhaseOf(Role::kConsumer), clock);
          break;
        case PhaseKind::kMoeDown:
          ConsumeMoeDown(block, clock);
          break;
        case PhaseKind::kAttend:
          Attend(block);
          break;
        case PhaseKind::kCombine:
          Combine(block);
          break;
        case PhaseKind::kChain:
          if constexpr (kChains) ChainDrafts(block);
          break;
        case PhaseKind::kTally:
        case PhaseKind::kSift:
        case PhaseKind::kDraw:
          ChooseFromWholeRows(block);
          break;
        case PhaseKind::kCommit:
          Commit(block);
          break;
        case PhaseKind::kAppend:
          Append(block);
          break;
      }
      if (Thread() == 0) {
        const Phase& phase = block.PhaseOf(Role::kConsumer);
        if (phase.kind != PhaseKind::kMoeDown) block.Stamp(phase.index, kTraceWorkDone);
      }
    }
    EndRound(block);
  } while (block.shared().state.runs_on);
  WaitCopies<0>();
}

template <int kBands>
__device__ __forceinline__ void Finish(const BandBlock<kBands>& block) {
  const auto barrier = [] { NamedBarrier<kFinisherBarrier, kFinisherThreads>(); };
  const int thread = Thread() - kFirstFinisherWarp * kWarpLanes;
  const PhaseWalk<Role::kFinisher, kFirstFinisherWarp, kFinisherWarps> walk(block);
  ExchangeClock exchange;
  do {
    for (int i = 0; i < block.program().num_phases; i = block.Entered() + 1) {
      walk.Enter(i, barrier);
      const Phase& phase = block.PhaseOf(Role::kFinisher);
      switch (phase.kind) {
        case PhaseKind::kProduct:
          FinishProduct(block, exchange);
          break;
        case PhaseKind::kMoeUp:
          FinishMoeUp(block, exchange);
          break;
        case PhaseKind::kMoeDown:
          FinishMoeDown(block);
          break;
        case PhaseKind::kAttend:
          Load(block);
          break;
        case PhaseKind::kEmbed:
        case PhaseKind::kCommit:
          NamedBarrier<kWorkerBarrier, kWorkerThreads>();  // the round's state has changed
          break;
        default:
          break;
      }
      if (!HasFinishersWork(phase.kind)) continue;
      if (phase.kind == PhaseKind::kMoeDown) {  // which consumers help to finish
        NamedBarrier<kWorkerBarrier, kWorkerThreads>();
      } else {
        barrier();
      }
      if (thread == 0) {
        const bool arrives = phase.arrive_counter >= 0 && phase.output != OutputKind::kResidual;
        if (arrives) block.WaitForInput(phase);
        block.shared().phases_finished = block.shared().phases_finished + 1;
        if (arrives) ArriveEverywhere(block.Counter(phase.arrive_counter));
        block.Stamp(phase.index, kTraceFinished);
      }
    }
    NamedBarrier<kWorkerBarrier, kWorkerThreads>();  // EndRound
  } while (block.shared().state.runs_on);
  WaitCopies<0>();
}

__device__ __forceinline__ void InitShared(Shared& shared, const Program& program) {
  static_assert(sizeof(Program) % sizeof(uint32_t) == 0);
  for (int i = Thread(); i < static_cast<int>(sizeof(Program) / sizeof(uint32_t)); i += kThreads) {
    reinterpret_cast<uint32_t*>(&shared.program)[i] =
        reinterpret_cast<const uint32_t*>(&program)[i];
  }
  if (Thread() != 0) return;
  for (int i = 0; i < kRingEntries; ++i) {
    InitBarrierCount(&shared.full[i], 1);
    InitBarrierCount(&shared.empty[i], kConsumerWarps);
  }
  for (int i = 0; i < kExchangeBuffers; ++i) {
    InitBarrierCount(&shared.exchange_full[i], 1);
    for (int owner = 0; owner < kClusterBlocks; ++owner) {
      InitBarrierCount(&shared.exchange_free[owner][i], 1);
      Arrive(&shared.exchange_free[owner][i], 1);  // free at first
    }
  }
  InitBarrierCount(&shared.experts_chosen, kConsumerWarps);
  InitBarrierCount(&shared.slots_known, 1);
  FenceBarrierInit();
  shared.exits = 0;
  shared.phases_finished = 0;
  shared.newest_input = ~0u;
  shared.newest_scales = ~0u;
  shared.state = {.position = {},
                  .tokens = {},
                  .chosen = {},
                  .num_kept = {},
                  .num_experts = 0,
                  .round = 0,
                  .runs_on = true,
                  .is_void = false,
                  .has_segments = false,
                  .num_views = 0,
                  .views = {},
                  .verified = 0,
                  .num_verified = {},
                  .log_reach_min = program.log_reach_min};
  for (int row = 0; row < program.num_rows; ++row) shared.state.tokens[row] = program.tokens[row];
  for (int s = 0; s < program.num_sequences; ++s) {
    const RoundSequence& sequence = program.sequences[s];
    shared.state.position[s] = sequence.position;
    shared.state.has_segments |= HasSegments(sequence.position + sequence.block);
  }
}

// One for each number of bands, and for drafters with and without a Markov head: what another has,
// the compiler pays for in registers of the products.
template <int kBands, bool kChains>
__global__ void __cluster_dims__(kClusterBlocks, 1, 1) __launch_bounds__(kThreads, 1)
    ResidentKernel(const __grid_constant__ Program program) {
  const BandBlock<kBands> block = {{.rank = static_cast<int>(blockIdx.x) % kClusterBlocks,
                                    .cluster = static_cast<int>(blockIdx.x) / kClusterBlocks,
                                    .num_clusters = static_cast<int>(gridDim.x) / kClusterBlocks,
                                    .index = static_cast<int>(blockIdx.x),
                                    .num_blocks = static_cast<int>(gridDim.x),
                                    .shared_base = SharedBase()}};
  Shared& shared = block.shared();
  InitShared(shared, program);
  __syncthreads();
  ClusterBarrier();  // nobody sends into memory that is not ready
  const int warp = Thread() / kWarpLanes;
  if (warp < kConsumerWarps) {
    Consume<kBands, kChains>(block);
  } else if (warp == kProducerWarp) {
    Produce(block);
  } else {
    Finish(block);
  }
  __syncwarp();
  ClusterBarrier();  // nor into memory that is gone
}

__global__ void EmptyWords(uint32_t* words, size_t count) {
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + Thread(); i < count; i += stride)
    words[i] = kNotArrived;
}

cudaLaunchConfig_t Config(int num_blocks, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(num_blocks);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = sizeof(Shared);
  config.stream = stream;
  return config;
}

using Kernel = void (*)(Program);
constexpr Kernel kKernels[][2] = {{ResidentKernel<1, false>, ResidentKernel<1, true>},
                                  {ResidentKernel<2, false>, ResidentKernel<2, true>}};
static_assert(std::size(kKernels) == kBandsMax);

}  // namespace

int NumBlocks() {
  static OncePerDevice configured;
  configured.Run([] {
    for (const auto& of_bands : kKernels) {
      for (const Kernel kernel : of_bands) {
        CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       sizeof(Shared)),
                  "ResidentKernel shared memory");
      }
    }
  });
  static const int num_blocks = [] {
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {kClusterBlocks, 1, 1};
    cudaLaunchConfig_t config = Config(kClusterBlocks, nullptr);
    config.attrs = &cluster;
    config.numAttrs = 1;
    int num_clusters = 0;
    CheckCuda(cudaOccupancyMaxActiveClusters(&num_clusters, kKernels[0][0], &config),
              "cudaOccupancyMaxActiveClusters");
    return num_clusters * kClusterBlocks;
  }();
  return num_blocks;
}

void Prepare(const Program& program, cudaStream_t stream) {
  const int num_blocks = NumBlocks();
  KERNELS_CHECK(num_blocks, >, 0);
  KERNELS_CHECK(NumRowTiles(program.hidden), <=, num_blocks * kOwnedTilesMax);
  CheckCuda(cudaMemsetAsync(program.counters, 0, kNumCounters * 32 * sizeof(uint32_t), stream),
            "counters");
  CheckCuda(cudaMemsetAsync(program.decision, 0, sizeof(*program.decision), stream), "decision");
  CheckCuda(cudaMemsetAsync(program.abort_word, 0, sizeof(uint32_t), stream), "abort word");
  if (program.whole_row.filters) {
    CheckCuda(cudaMemsetAsync(program.whole_row.tallies, 0, kRowsMax * sizeof(RowTally), stream),
              "tallies");
  }
  const auto empty = [&](void* words, size_t count) {
    EmptyWords<<<num_blocks, 256, 0, stream>>>(static_cast<uint32_t*>(words), count);
    CheckLaunch("EmptyWords");
  };
  empty(program.rows.rows, kRowsMax * program.hidden);
  empty(program.rows.squares, 2 * kRowsMax * program.hidden / 16);
  const MoeMail& moe = program.moe;
  constexpr int kMails = 2 * kBandsMax;
  if (moe.num_partials > 0) empty(moe.partials, kMails * moe.num_partials);
  empty(moe.scores, kMails * kNumScores);
  CheckCuda(cudaMemsetAsync(moe.priorities, 0, kMails * kNumScores * sizeof(uint32_t), stream),
            "priorities");
  if (moe.num_activations > 0) empty(moe.activations, kMails * moe.num_activations);
  const Collective& ranks = program.collective;
  CheckCuda(cudaMemsetAsync(ranks.mail, 0, ranks.num_ranks * sizeof(*ranks.mail), stream), "mail");
  if (ranks.num_ranks == 1) return;
  empty(ranks.inbox, 3 * ranks.num_ranks * ranks.inbox_rank_words * 2);
}

void Launch(const Program& program, cudaStream_t stream) {
  KERNELS_CHECK(program.num_bands, <=, kBandsMax);
  const cudaLaunchConfig_t config = Config(NumBlocks(), stream);
  CheckCuda(
      cudaLaunchKernelEx(&config, kKernels[program.num_bands - 1][program.chains_drafts], program),
      "ResidentKernel");
}

}  // namespace ultraspeed::kernels::cuda::resident
