// A round of the resident engine as a list of phases: what the device will walk, made on the host.
//
// A pure function of shapes, weights' and buffers' addresses and the number of thread blocks; with
// null addresses it still has the whole structure, which tests and `ToString` read without a GPU.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/resident/program.h"
#include "worker/cuda/device_weights.h"
#include "worker/cuda/drafter.h"
#include "worker/cuda/resident_buffers.h"
#include "worker/cuda/target.h"
#include "worker/model/config.h"

namespace ultraspeed::worker::cuda {

// What a phase is in the tables of a benchmark.
enum class PhaseLabel : uint8_t {
  kEmbed,
  kQkv,
  kAttention,
  kCombine,
  kOutput,
  kDenseUp,
  kDenseDown,
  kMoeUp,
  kMoeDown,
  kHead,
  kDraftQkv,
  kDraftAttention,
  kDraftCombine,
  kDraftOutput,
  kDraftUp,
  kDraftDown,
  kDraftHead,
  kDraftChain,
  kChoice,
  kCommit,
  kContext,
  kCount,
};
const char* Name(PhaseLabel label);

// Everything that a schedule points to. Pointers may be null.
struct ResidentModel {
  const ModelConfig& config;
  const TargetWeights& target;
  const DrafterWeights& drafter;  // no layers: none
  const TargetForward& target_caches;
  const DrafterForward* drafter_caches;  // null: none
  const ResidentBuffers& buffers;
  ResidentRanks ranks;
  int num_blocks;
};

struct ResidentSchedule {
  std::vector<kernels::cuda::resident::Phase> phases;
  kernels::cuda::resident::Tally of_round;
  uint32_t totals[kernels::cuda::resident::kNumCounters] = {};
  int decision_counter = 0;
  uint32_t decision_target = 0;

  std::string ToString() const;  // a line a phase
};

// What a round consists of.
struct RoundKind {
  int draft_passes = 0;     // sequences that draft; 0: a plain round
  int num_bands = 1;        // of the target's rows
  bool whole_rows = false;  // chooses with phases of their own (resident::WholeRow); not the
                            // drafts of a drafter with a Markov head
};

// All of them, with up to so many drafter's passes. A sequence that drafts has at least two rows.
std::vector<RoundKind> RoundKinds(int draft_passes_max);

// What phases point to, where it will lie in device memory.
struct ResidentTasks {
  const kernels::cuda::resident::AttentionTask* append = nullptr;  // [layers] of the drafter
  const kernels::cuda::resident::ChainTask* chain = nullptr;
};

ResidentSchedule BuildSchedule(const ResidentModel& model, const RoundKind& kind,
                               const ResidentTasks& tasks);
std::vector<kernels::cuda::resident::AttentionTask> AppendTasks(const ResidentModel& model);
kernels::cuda::resident::ChainTask ChainTaskOf(const ResidentModel& model);

// Weight bytes that a phase reads; of a MoE phase with `distinct_experts` experts.
double PhaseBytes(const kernels::cuda::resident::Phase& phase, double distinct_experts);

}  // namespace ultraspeed::worker::cuda
