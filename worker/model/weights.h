// The checkpoint as typed fields: what the forward passes read, with its shapes, wherever it lies.
//
// Callers: the executors. A Storage says what a matrix, a vector and an expert are: HostStorage
// here for the CPU, DeviceStorage in worker/cuda. weights_loader.h fills the fields, the same way
// for both. Nothing here refers to the files afterwards. Shape letters: worker/model/config.h.
// Thread: immutable after loading.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "worker/model/config.h"
#include "worker/model/load_options.h"

namespace ultraspeed::worker {

template <typename Storage>
struct TargetLayerOf {
  typename Storage::Floats input_norm = {};           // [H]
  typename Storage::Floats post_attention_norm = {};  // [H]
  // The fused projection, one row group per kv head r: [q heads of r | k head r | v head r], each
  // group padded with zero rows to QkvGroupRows(config), because FP8 blocks count from the group's
  // first row.
  typename Storage::Matrix qkv = {};     // [Hkv * QkvGroupRows, H]
  typename Storage::Matrix output = {};  // [H, Hq * Dv]
  typename Storage::Floats sinks = {};   // [Hq]; empty on full layers
  typename Storage::Mlp mlp = {};        // dense layers only
  typename Storage::Floats router = {};  // [E, H] (GPU: packed); MoE layers only, as the next two
  typename Storage::Floats router_bias = {};  // [E]
  typename Storage::Experts experts = {};     // [E]
};

template <typename Storage>
struct TargetWeightsOf {
  typename Storage::Bf16s embedding = {};           // [V, H]
  std::vector<TargetLayerOf<Storage>> layers = {};  // [L]
  typename Storage::Floats final_norm = {};         // [H]
  typename Storage::Matrix head = {};               // [V, H]
};

template <typename Storage>
struct DrafterLayerOf {
  typename Storage::Floats input_norm = {};           // [H]
  typename Storage::Floats post_attention_norm = {};  // [H]
  typename Storage::Matrix qkv = {};                  // [(Hq + 2 Hkv) * D, H]: all q, all k, all v
  typename Storage::Floats q_norm = {}, k_norm = {};  // [D]
  typename Storage::Floats sinks = {};                // [Hq] or empty
  typename Storage::Matrix output = {};               // [H, Hq * D]
  typename Storage::Mlp mlp = {};
};

// What a draft's logits get for the token before it, e = previous[token]: next (g * e), with g = 1,
// or where there is a gate g = sigmoid(gate h + gate_previous e + gate_bias), h being the row's
// hidden state as the head reads it. Whole on every rank.
template <typename Storage>
struct MarkovHeadOf {
  typename Storage::Bf16s previous = {};        // [V, R]
  typename Storage::Matrix next = {};           // [V, R]
  typename Storage::Matrix gate = {};           // [R, H]
  typename Storage::Matrix gate_previous = {};  // [R, R]
  typename Storage::Floats gate_bias = {};      // [R]
};

template <typename Storage>
struct DrafterWeightsOf {
  typename Storage::Matrix features = {};       // fc [H, taps * H]
  typename Storage::Floats features_norm = {};  // hidden_norm [H]
  // k and v rows of all layers once more, as one matrix for context features: [layers * 2 * Hkv *
  // D, H], per layer k then v.
  typename Storage::Matrix context_kv = {};
  std::vector<DrafterLayerOf<Storage>> layers = {};
  typename Storage::Floats final_norm = {};     // [H]
  MarkovHeadOf<Storage> markov = {};            // nothing where config.markov_rank is 0
  typename Storage::Bf16s mask_embedding = {};  // [H]
};

template <typename Storage>
struct ModelWeightsOf {
  TargetWeightsOf<Storage> target = {};
  DrafterWeightsOf<Storage> drafter = {};  // no layers when the folder has no dflash/
};

struct HostStorage {
  using Floats = std::vector<float>;
  using Bf16s = std::vector<kernels::bf16>;
  using Matrix = kernels::PackedMatrix;
  using Mlp = kernels::MlpWeights;
  using Experts = std::vector<kernels::MlpWeights>;
};
using TargetLayer = TargetLayerOf<HostStorage>;
using TargetWeights = TargetWeightsOf<HostStorage>;
using DrafterLayer = DrafterLayerOf<HostStorage>;
using MarkovHead = MarkovHeadOf<HostStorage>;
using DrafterWeights = DrafterWeightsOf<HostStorage>;
using ModelWeights = ModelWeightsOf<HostStorage>;

// Rows of one kv head's group in TargetLayer::qkv.
int QkvGroupRows(const ModelConfig& config);

// One rank's part of the model, packed for the CPU's kernels; `config` is the whole model's. Every
// tensor is checked on the way (dtype, shape, no NaN codes or scales): NOT_FOUND or
// INVALID_ARGUMENT names file and tensor.
absl::StatusOr<ModelWeights> LoadModelWeights(const std::string& folder, const ModelConfig& config,
                                              const LoadOptions& options);

}  // namespace ultraspeed::worker
