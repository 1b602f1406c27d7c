// The checkpoint as typed fields: what the forward pass reads, packed for the kernels, with its
// shapes.
//
// Callers: the executors. Every tensor is checked on the way (dtype, shape, no NaN codes or scales)
// and refused by name. Nothing here refers to the files afterwards. Shape letters:
// worker/model/config.h. Thread: immutable after loading.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "worker/model/config.h"

namespace ultraspeed::worker {

struct TargetLayer {
  std::vector<float> input_norm;           // [H]
  std::vector<float> post_attention_norm;  // [H]
  // The fused projection, one row group per kv head r: [q heads of r | k head r | v head r], each
  // group padded with zero rows to QkvGroupRows(config), because FP8 blocks count from the group's
  // first row.
  kernels::PackedMatrix qkv;                 // [Hkv * QkvGroupRows, H]
  kernels::PackedMatrix output;              // [H, Hq * Dv]
  std::vector<float> sinks;                  // [Hq]; empty on full layers
  kernels::MlpWeights mlp;                   // dense layers only
  std::vector<float> router;                 // [E, H]; MoE layers only, as are the next two
  std::vector<float> router_bias;            // [E]
  std::vector<kernels::MlpWeights> experts;  // [E]
};

struct TargetWeights {
  std::vector<kernels::bf16> embedding;  // [V, H]
  std::vector<TargetLayer> layers;       // [L]
  std::vector<float> final_norm;         // [H]
  kernels::PackedMatrix head;            // [V, H]
};

struct DrafterLayer {
  std::vector<float> input_norm;           // [H]
  std::vector<float> post_attention_norm;  // [H]
  kernels::PackedMatrix qkv;               // [(Hq + 2 Hkv) * D, H]: all q, all k, all v
  std::vector<float> q_norm, k_norm;       // [D]
  std::vector<float> sinks;                // [Hq] or empty
  kernels::PackedMatrix output;            // [H, Hq * D]
  kernels::MlpWeights mlp;
};

struct DrafterWeights {
  kernels::PackedMatrix features;    // fc [H, taps * H]
  std::vector<float> features_norm;  // hidden_norm [H]
  // k and v rows of all layers once more, as one matrix for context features: [layers * 2 * Hkv *
  // D, H], per layer k then v.
  kernels::PackedMatrix context_kv;
  std::vector<DrafterLayer> layers;
  std::vector<float> final_norm;              // [H]
  std::vector<kernels::bf16> mask_embedding;  // [H]
};

struct ModelWeights {
  TargetWeights target;
  DrafterWeights drafter;  // no layers when the folder has no dflash/
};

// Rows of one kv head's group in TargetLayer::qkv.
int QkvGroupRows(const ModelConfig& config);

// `progress(done, total)` is called after each layer; may be null. NOT_FOUND or INVALID_ARGUMENT
// names file and tensor.
absl::StatusOr<ModelWeights> LoadModelWeights(const std::string& folder, const ModelConfig& config,
                                              const std::function<void(int, int)>& progress);

}  // namespace ultraspeed::worker
