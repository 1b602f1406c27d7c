// A rank's packed weights from a cache file straight into device memory, or after the load into
// one.
//
// Caller: device_weights.cc. The weights are one piece of the arena, and where each of them lies
// follows from the shape alone, so the file is that piece. Thread: the loading thread.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "worker/cuda/device_weights.h"

namespace ultraspeed::worker::cuda {

// What the packing code of this build makes of small known matrices on this GPU, as a checksum: a
// cache from code that packs in another way is told by it. RESOURCE_EXHAUSTED without memory.
absl::StatusOr<std::string> PackingProbe(cudaStream_t stream);

// Reads the rank's cache, or calls `load`, whose places are the same, and writes it. A cache that
// is stale, damaged or cannot be written costs a line to options.notice, never the load. REQUIRES:
// options.shared and options.weights_cache.
absl::StatusOr<ModelWeights> LoadThroughCache(
    const std::string& folder, const ModelConfig& config, DevicePacker& pack,
    const LoadOptions& options, const std::function<absl::StatusOr<ModelWeights>()>& load);

}  // namespace ultraspeed::worker::cuda
