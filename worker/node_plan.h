// What a model takes of a node before anything is loaded: memory of each GPU, KV capacity by
// context length, and the bytes that a round reads beside the time that reading them takes at
// least.
//
// Callers: ultraspeed-worker --plan, tests. Needs neither GPU nor checkpoint weights; the config is
// enough. Thread: any; pure.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/executor.h"
#include "worker/model/sharding_plan.h"

namespace ultraspeed::worker {

struct NodePlanOptions {
  int num_gpus = 8;
  double gpu_memory_gb = 141;        // of one GPU, 1e9 bytes
  double read_tb_per_second = 4.68;  // of one GPU, measured
  int max_batch_tokens = 512;        // rows of one pass; sliding layers' rings grow with it
  KvPrecision kv_precision = KvPrecision::kBf16;
};

// One line of the KV table: sequences that all have this length.
struct ContextPlan {
  int64_t context_tokens = 0;
  int64_t gpu_bytes_per_sequence = 0;  // pages of the full layers, rings, drafter's rings
  int64_t num_sequences = 0;           // that fit
  int64_t tokens() const { return num_sequences * context_tokens; }
  int64_t gpu_kv_bytes_per_round = 0;  // read by one sequence's round at this position
};

// Bytes that one GPU reads in one round of one sequence, by what they are for.
struct RoundPart {
  std::string name;
  int64_t gpu_bytes = 0;
  std::string note;
};

struct NodePlan {
  NodePlanOptions options;
  std::string model;
  ShardingPlan sharding;
  int64_t gpu_memory_bytes = 0;
  int64_t gpu_weight_bytes = 0;  // as published, plus the second copy of the drafter's k and v rows
  int64_t gpu_working_bytes = 0;       // set aside for the driver, activations and scratch
  int64_t gpu_kv_bytes = 0;            // what is left; negative = the model does not fit
  int64_t gpu_kv_bytes_per_token = 0;  // of the full layers
  std::vector<ContextPlan> contexts;
  int round_rows = 1;  // anchor and drafts
  double distinct_experts = 0;
  std::vector<RoundPart> round;

  int64_t gpu_round_bytes() const;  // without keys and values
  double FloorMs(int64_t gpu_bytes) const;
};

// INVALID_ARGUMENT names what cannot be planned; RESOURCE_EXHAUSTED if the weights do not fit, with
// the numbers.
absl::StatusOr<NodePlan> PlanNode(const ModelConfig& config, const NodePlanOptions& options);

std::string ToTable(const NodePlan& plan);         // for people
boost::json::object ToJson(const NodePlan& plan);  // for programs

// `model`: a checkpoint folder, or shape:mimo-v2.5-pro.
absl::StatusOr<ModelConfig> ConfigForPlan(const std::string& model);

}  // namespace ultraspeed::worker
