// Which models the resident engine takes; the others decode by single operations.
//
// Thread: any; pure.
#pragma once

#include "absl/status/status.h"
#include "worker/cuda/device_weights.h"
#include "worker/executor.h"
#include "worker/model/config.h"

namespace ultraspeed::worker::cuda {

// INVALID_ARGUMENT names the first dimension that the resident engine does not take.
absl::Status CheckResidentShape(const ModelConfig& config, KvPrecision kv_precision);

// Whether all experts are MXFP4, the only format of theirs that the resident engine takes.
bool HasResidentFormats(const TargetWeights& target);

}  // namespace ultraspeed::worker::cuda
