// Every tensor that a checkpoint of a given shape holds: names, types, shapes.
//
// The lists of the target and of the drafter are what weights_loader.h asks its reader for, so they
// cannot drift from what is loaded. Callers: the sharding plan, the read-ahead, the generator of
// synthetic checkpoints. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/model/config.h"

namespace ultraspeed::worker {

struct TensorSpec {
  std::string name;
  std::string dtype;           // as in a .safetensors header
  std::vector<int64_t> shape;  // as stored: a byte of MXFP4 codes is one element
  int64_t num_values = 0;      // numbers: a byte of MXFP4 codes is two

  int64_t bytes() const;
};

// In the order in which they are loaded.
std::vector<TensorSpec> TargetTensors(const ModelConfig& config);
// Of dflash/, without the mask embedding, which has a file of its own. Empty without a drafter.
std::vector<TensorSpec> DrafterTensors(const DrafterConfig& config);

// The multi-token prediction heads that the releases ship beside the model (model.mtp.*) and that
// this engine skips.
inline constexpr int kPublishedPredictionHeads = 3;
inline constexpr char kPredictionHeadPrefix[] = "model.mtp.";
// Of a drafter that was trained as DSpark: how likely its drafts are, its own probabilities tell.
inline constexpr char kConfidenceHeadPrefix[] = "confidence_head.";
std::vector<TensorSpec> PredictionHeadTensors(const ModelConfig& config, int num_heads);

}  // namespace ultraspeed::worker
