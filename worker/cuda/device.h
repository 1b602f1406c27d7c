// What the rest of the program knows of CUDA: whether it can be used, and executors. Free of CUDA
// headers; a build without CUDA links unavailable.cc, which refuses.
//
// Thread: start-up only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model_executor.h"

namespace ultraspeed::worker {

// To be called before anything else of CUDA by programs that may use several GPUs: kernels are
// loaded at start (a kernel that is loaded while another waits for a peer may never be), and NCCL
// leaves NVLink multicast alone. What the environment says already stays.
void SetNodeEnvironment();

// OK if device 0 can run our kernels (Hopper, driver new enough). FAILED_PRECONDITION says why not,
// in one line.
absl::Status CudaUsable();

// On options.num_ranks GPUs. RESOURCE_EXHAUSTED states the memory plan, what is free and which
// options to lower; INVALID_ARGUMENT names a shape that the kernels do not take, or more GPUs than
// are visible.
absl::StatusOr<std::unique_ptr<ModelExecutor>> CreateCudaExecutor(const ExecutorOptions& options);

// Packed bytes that a forward pass reads, by what they are for.
struct PassBytes {
  size_t qkv = 0, output = 0, router = 0, dense_mlp = 0, head = 0;  // a pass of the target
  size_t expert = 0;         // one expert of one layer: as often as one is routed to
  size_t draft_block = 0;    // a pass of the drafter, without the head
  size_t draft_context = 0;  // after every pass of the target
};

// An executor of made-up weights (repeatable, random), for timing a shape.
struct RandomModel {
  std::unique_ptr<ModelExecutor> executor;
  PassBytes bytes;
  std::string memory;  // the plan, in words
};
// `num_ranks_alone`: the config is one GPU's part of as many; alone, it stands for the others'
// traffic. REQUIRES: 1 if options.num_ranks is more.
absl::StatusOr<RandomModel> CreateRandomCudaModel(const ModelConfig& config,
                                                  const ExecutorOptions& options,
                                                  int num_ranks_alone);

// Rounds of one sequence on the resident engine, all at the same place, by what their phases are.
struct ResidentPhaseTimes {
  std::string name;
  int count = 0;       // phases of this kind in a round
  double ms = 0;       // of the round's critical path, all of them together
  double wait_ms = 0;  // of it, mean of the blocks' waits for input
  double bytes = 0;    // of weights
};
struct ResidentRoundTimes {
  std::vector<double> round_ms;
  double expert_reads = 0;  // a layer: of all bands' distinct experts together
  double bytes = 0;         // of weights, a round
  int num_blocks = 0;
  std::vector<ResidentPhaseTimes> phases;
};
struct ResidentRounds {
  int num_rounds = 32;
  int verified_rows = 0;   // of each sequence's block, whatever is drafted; 0: all
  std::string trace_file;  // Perfetto/Chrome timeline of the last round; empty = none
};
// Whether a CUDA executor gives the resident engine the steps that it takes; true at first.
void UseResidentEngine(ModelExecutor& executor, bool use);
// Of a CUDA executor: every layer of a pass, or of a round of the resident engine, reads as many
// experts, whatever the router says; 0, as at first: as routed.
void ForceDistinctExperts(ModelExecutor& executor, int a_layer);
// Of sequences that share a round. FAILED_PRECONDITION if the executor has no resident engine for
// its shape.
absl::StatusOr<ResidentRoundTimes> MeasureResidentRounds(ModelExecutor& executor,
                                                         const Round& round,
                                                         const ResidentRounds& what);

// Sums and gathers over the GPUs of a node: whether they are right, and how long they take.
struct NodeSumTimes {
  size_t bytes = 0;     // of the fp32 numbers that are summed
  double peers_us = 0;  // over peer memory; 0: peers cannot be mapped
  double parts_us = 0;  // the same bits, parts gathered by NCCL; 0: no NCCL
  double nccl_us = 0;   // NCCL's own sum of fp32, in an order of its own; 0: no NCCL
  double floor_us = 0;  // of the bytes that peers_us sends, at peer_bytes_per_second
};
struct NodeSums {
  std::string device;
  int64_t num_sums = 0, num_gathers = 0;  // checked, of each rank
  int64_t num_wrong = 0;                  // elements whose bits are not those expected
  double check_seconds = 0;
  double peer_bytes_per_second = 0;  // a copy from GPU 0 to GPU 1, one way
  std::vector<NodeSumTimes> times;
};
absl::StatusOr<NodeSums> MeasureNodeSums(int num_gpus, int64_t num_calls);

// Bytes per second at which all of device 0 reads `bytes` bytes of its memory, best of several
// passes. REQUIRES: CudaUsable; that much memory free.
double MeasureDeviceReadBandwidth(size_t bytes);

}  // namespace ultraspeed::worker
