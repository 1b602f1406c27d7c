// The shape of MiMo-V2.5-Pro without its files, and what one GPU of several holds of it: for
// planning memory and measuring speed where no checkpoint of that size is at hand.
//
// Pure.
#pragma once

#include "absl/status/statusor.h"
#include "worker/model/config.h"

namespace ultraspeed::worker {

ModelConfig MimoV25ProShape();

// PartOf with a mask id that fits the part's vocabulary: for executors that run one GPU's part
// alone, with made-up weights, as if it were a model.
absl::StatusOr<ModelConfig> RankOf(ModelConfig config, int num_ranks);

}  // namespace ultraspeed::worker
