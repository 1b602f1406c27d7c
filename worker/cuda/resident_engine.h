// Rounds on the resident kernel. For the sequences of a round, while they stay the same, it is
// started once, goes on by itself, and the host takes finished rounds from a ring; rounds of
// several such companies take turns, a launch a round.
//
// A session is one launch: the same sequences, block sizes and ways of sampling. The kernel runs a
// few rounds ahead of what the host has taken; it ends when the host asks (anything else needs the
// GPU), when its host falls behind, or at the end of a sequence's pages. Rounds that were run and
// not taken stay valid while the same sequences go on, and are dropped otherwise: they wrote only
// keys and values that the next round writes again. A turn is a launch that ends after its round.
//
// Drafts that a step brings along come too late for a session, whose next round is under way: that
// round is taken, with the drafter's drafts, and the session ends. The rounds behind it are
// launched one by one until none brings any.
//
// Where a sequence is held to something, the kernel tells the host what a round drafted, and the
// host sends what may be chosen behind it while the target runs.
//
// Of a node's ranks, rank 0's engine leads: it starts and stops the kernels of all, one on each
// GPU, and takes the rounds of its own, which are those of all. The kernels join their sums,
// choices and decisions over peer memory. Caller: CudaExecutor. Thread: the engine thread.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/resident/program.h"
#include "worker/batch.h"
#include "worker/cuda/mask_mail.h"
#include "worker/cuda/node_group.h"
#include "worker/cuda/resident_schedule.h"
#include "worker/cuda/round_plan.h"

namespace ultraspeed::worker::cuda {

// Rounds that all ran at the same place.
struct ResidentTimes {
  std::vector<double> round_ms;  // [num_rounds - 1], between the ends of two rounds
  int num_blocks = 0;
  int num_experts = 0;  // that the last round read, of all layers together
  std::vector<kernels::cuda::resident::Phase> phases;
  // Of the last round, ns of the GPU's clock: [blocks, phases, kTraceStamps].
  std::vector<uint64_t> trace;
};

class ResidentEngine {
 public:
  // `config` and `weights`: of the rank's part; `banned_token` and `vocabulary_used`: of the whole
  // model. Takes memory from `arena`; with an arena that counts, nothing else.
  ResidentEngine(const ModelConfig& config, const ModelWeights& weights,
                 const TargetForward& target, const DrafterForward* drafter, int64_t positions,
                 int32_t banned_token, int vocabulary_used, uint64_t wait_ns_max,
                 const ResidentRanks& ranks, DeviceArena& arena, cudaStream_t stream);
  ~ResidentEngine();
  ResidentEngine(const ResidentEngine&) = delete;
  ResidentEngine& operator=(const ResidentEngine&) = delete;

  // Makes the engines of all ranks one, led by the first: only that one is called afterwards, and
  // before the others end. Engine r is on GPU r. REQUIRES: group.has_peers().
  static void Join(const std::vector<ResidentEngine*>& engines, NodeGroup& group);

  // Whether the step is one that runs here: it decodes, without alternatives to its choices.
  bool Takes(const SequenceStep& step) const;
  struct Finished {
    RoundResult result;
    int num_experts;  // read, of all layers together
  };
  // The next round of sequences that are likely to go on together. REQUIRES: Takes all steps, which
  // share a round (ShareRound). Blocks until the round is finished.
  Finished Run(const Round& round);
  // Rounds one after the other. REQUIRES: as Run, each; at most kTurnsMax. Blocks until the GPU is
  // given back.
  std::vector<Finished> RunInTurns(const std::vector<Round>& rounds);
  // Gives the GPU back: returns when the kernel has ended. Everything enqueued later sees its
  // caches.
  void Yield();

  // For benchmarks.
  // `verified_rows`: of each sequence, whatever is drafted; 0: all.
  ResidentTimes Measure(const Round& round, int num_rounds, int verified_rows);
  // As TargetForward's.
  void ForceDistinctExperts(int distinct);

 private:
  struct Member {  // of a session
    int slot = 0;
    int block = 1;
    kernels::SamplingSpec sampling;
    bool wants_logprobs = false;
    bool is_held = false;
    int64_t position = 0;  // of the next round to take
    int32_t anchor = 0;
  };
  struct Session {
    std::vector<Member> members;  // in the order of the program's sequences
    uint32_t num_taken = 0;       // rounds of this launch
    bool weighs_drafts = false;
  };

  // Turn `turn` has pages and a record of its own.
  kernels::cuda::resident::Program ProgramFor(const Round& round, int turn);
  // Starts the copy of a step's pages; returns where they will lie.
  const int32_t* UploadPages(const SequenceStep& step, int turn, int sequence);
  // Enqueues kernels on all ranks' GPUs; `change` may alter a rank's program before.
  template <typename Change>
  void Launch(const Round& round, int turn, Change change);
  // On all ranks, while no kernel runs: no round has finished, and the next launches end as
  // `control` says.
  void Reset(const kernels::cuda::resident::HostControl& control);
  void Start(const Round& round);
  // Run, where steps bring drafts along.
  Finished RunGiven(const Round& round);
  // The session's next round: as Complete; what it gave.
  bool CompleteNext(const Round& round);
  Finished TakeNext(const Round& round);
  uint32_t NextRecord() const;
  // Waits for all ranks' kernels.
  void Finish();
  bool Continues(const Round& round) const;
  // Until record `index` is that of the launch's round `number`, which the host does its part of;
  // false: the kernel ended before it.
  bool Complete(const Round& round, uint32_t index, uint32_t number);
  // Until the kernel has written `value`; false: it ended without.
  bool Await(const uint32_t& word, uint32_t value);
  // What may be chosen in a round whose drafts `record` tells.
  void SendMasks(const Round& round, const kernels::cuda::resident::RoundRecord& record);
  Finished ResultOf(const Round& round, uint32_t index) const;
  void CheckAlive(cudaError_t status) const;
  void PrintStuck() const;

  const ModelConfig& config_;
  const ModelWeights& weights_;
  const int64_t positions_;
  const int32_t banned_token_;
  const int vocabulary_used_;
  const uint64_t wait_ns_max_;
  const ResidentRanks ranks_;
  const cudaStream_t stream_;
  ResidentBuffers buffers_;
  MaskMail masks_;
  kernels::cuda::resident::Collective collective_;
  std::vector<ResidentEngine*> joined_;  // all ranks', this one first; alone, this one
  NodeGroup* group_ = nullptr;           // null: alone
  // A kind of round's schedule, and its phases in device memory; none drafts without a drafter.
  struct Rounds {
    ResidentSchedule schedule;
    const kernels::cuda::resident::Phase* device_phases = nullptr;
  };
  Rounds& RoundsOf(const RoundKind& kind) {
    return rounds_[kind.num_bands - 1][kind.draft_passes][kind.whole_rows];
  }

  Rounds rounds_[kernels::cuda::resident::kBandsMax][1 + kernels::cuda::resident::kDraftPassesMax]
                [2];
  int32_t* device_pages_ = nullptr;  // [kTurnsMax, kSequencesMax, pages of the longest sequence]
  int num_blocks_ = 0;

  struct Pinned {
    kernels::cuda::resident::HostControl control;
    kernels::cuda::resident::RoundRecord results[kernels::cuda::resident::kResultsMax];
    kernels::cuda::resident::StuckReport stuck;
  };
  Pinned* pinned_ = nullptr;
  int32_t* pinned_pages_ = nullptr;  // likewise
  bool running_ = false;
  int forced_distinct_experts_ = 0;
  Session session_;
};

}  // namespace ultraspeed::worker::cuda
