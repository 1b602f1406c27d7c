// The shape of MiMo-V2.5-Pro without its files, and what one GPU of several holds of it: for
// planning memory and measuring speed where no checkpoint of that size is at hand.
//
// Pure.
#pragma once

#include "absl/status/statusor.h"
#include "worker/model/config.h"

namespace ultraspeed::worker {

ModelConfig MimoV25ProShape();

// Rank 0 of `num_ranks`: heads, the width of every expert and MLP, and the vocabulary divided
// evenly; hidden width, router and the drafter's feature projection whole. INVALID_ARGUMENT names
// what does not divide.
absl::StatusOr<ModelConfig> RankOf(ModelConfig config, int num_ranks);

}  // namespace ultraspeed::worker
