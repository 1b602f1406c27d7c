// Loads a checkpoint as a worker does at start-up and reports the first error.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "tests/worker/model/synthetic_checkpoint.h"
#include "worker/model/config.h"
#include "worker/model/vocabulary.h"
#include "worker/model/weights.h"

namespace ultraspeed::worker {

inline absl::Status LoadStatus(const std::string& folder) {
  const absl::StatusOr<ModelConfig> config = LoadModelConfig(folder);
  if (!config.ok()) return config.status();
  const absl::StatusOr<int> used = CountUsedTokens(folder, config->vocabulary);
  if (!used.ok()) return used.status();
  return LoadModelWeights(folder, *config, nullptr).status();
}

inline absl::Status LoadStatus(const SyntheticCheckpoint& checkpoint) {
  const TemporaryFolder folder;
  checkpoint.Write(folder.path());
  return LoadStatus(folder.path());
}

}  // namespace ultraspeed::worker
