// How a model is divided over the GPUs of a node: one pure function of config and GPU count that
// says which slice of every tensor a GPU holds, and what that is in bytes.
//
// Tensor parallelism inside every layer, with two sums over the GPUs a layer (after o_proj and
// after the MLP or experts): query and key heads go by whole published qkv shards, every expert and
// MLP by its width, embedding and head by vocabulary. Whole on every GPU are the norms, the
// router, the drafter's Markov head and its feature projection: an eighth of the router would save
// 0.12 ms of reading a round on an H200 and cost a gather in each of 69 layers, about as much; an
// eighth of the projection would save 0.07 ms for one gather, and is what to split next. Callers:
// weights_loader.h through PartOf and SplitOf, the executors, --plan, bench/. Thread: any; pure.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "worker/model/config.h"
#include "worker/model/tensor_list.h"

namespace ultraspeed::worker {

// One of the `count` GPUs, or of the CPU executor's groups of threads, that share a model.
struct Rank {
  int index = 0;
  int count = 1;
};

// Along which stored dimension a tensor is cut, evenly.
enum class Split : uint8_t { kWhole, kRows, kColumns };

// By the end of a tensor's name, of target, drafter or prediction head alike; a scale tensor is cut
// as its weight is. REQUIRES: a name of tensor_list.h.
Split SplitOf(std::string_view tensor);

// `shape` of a stored tensor -> the shape of one rank's part. REQUIRES: what is cut divides.
std::vector<int64_t> PartShape(const TensorSpec& tensor, int num_gpus);

// The config of one GPU's part: heads, the width of experts and MLPs, and the vocabulary divided;
// the rest, also the drafter's mask id, as it was. INVALID_ARGUMENT names what does not divide and
// its value; num_gpus must be 1, 2, 4 or 8.
absl::StatusOr<ModelConfig> PartOf(const ModelConfig& config, int num_gpus);

enum class TensorKind : uint8_t {
  kExperts,
  kQkv,
  kOutput,
  kDenseMlp,
  kRouter,
  kEmbedding,
  kHead,
  kNorms,  // and sinks
  kDrafterFeatures,
  kDrafterQkv,
  kDrafterOutput,
  kDrafterMlp,
  kDrafterNorms,
  kDrafterMarkov,
  kCount,
};
inline constexpr size_t kTensorKinds = static_cast<size_t>(TensorKind::kCount);
const char* Name(TensorKind kind);      // "experts"
const char* HowSplit(TensorKind kind);  // "rows of gate and up, columns of down"

// All tensors of one kind with their scales, in checkpoint form.
struct KindPlan {
  int64_t num_tensors = 0;
  int64_t values = 0;  // numbers, see TensorSpec::num_values
  int64_t bytes = 0;
  int64_t gpu_values = 0;  // of one GPU; all hold equally much
  int64_t gpu_bytes = 0;
};

struct ShardingPlan {
  int num_gpus = 1;
  ModelConfig part;  // of one GPU
  std::array<KindPlan, kTensorKinds> kinds = {};

  const KindPlan& operator[](TensorKind kind) const { return kinds[static_cast<size_t>(kind)]; }
  KindPlan total() const;
  // Kind after kind, with the shapes that a GPU computes with.
  std::string ToString() const;
};

// INVALID_ARGUMENT as PartOf.
absl::StatusOr<ShardingPlan> PlanSharding(const ModelConfig& config, int num_gpus);

}  // namespace ultraspeed::worker
