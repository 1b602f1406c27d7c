// What the loader tests do to a synthetic checkpoint: find a tensor to damage, edit files that are
// already written, load the whole. A file that cannot be read is the machine's fault, not the
// test's subject: that aborts.
#pragma once

#include <boost/json.hpp>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>

#include "absl/status/status.h"
#include "tests/temporary_folder.h"
#include "tests/worker/model/synthetic_checkpoint.h"
#include "worker/model/config.h"
#include "worker/model/vocabulary.h"
#include "worker/model/weights.h"

namespace ultraspeed::worker {

// As a worker loads it at start-up: the first error, or OK.
inline absl::Status LoadStatus(const std::string& folder) {
  const absl::StatusOr<ModelConfig> config = LoadModelConfig(folder);
  if (!config.ok()) return config.status();
  const absl::StatusOr<int> used = CountUsedTokens(folder, config->vocabulary);
  if (!used.ok()) return used.status();
  return LoadModelWeights(folder, *config, {}).status();
}

inline absl::Status LoadStatus(const SyntheticCheckpoint& checkpoint) {
  const TemporaryFolder folder;
  checkpoint.Write(folder.path());
  return LoadStatus(folder.path());
}

inline SyntheticTensor& Tensor(SyntheticCheckpoint& checkpoint, const std::string& name) {
  const auto found = checkpoint.target.find(name);
  return found != checkpoint.target.end() ? found->second : checkpoint.drafter.at(name);
}

inline std::string ReadBytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) std::abort();
  std::ostringstream bytes;
  bytes << in.rdbuf();
  return bytes.str();
}

// A safetensors file of this header, sound or not, and the data that follows it.
inline std::string WithHeader(const std::string& header, const std::string& data) {
  const uint64_t header_bytes = header.size();
  std::string bytes(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
  return bytes + header + data;
}

// Rewrites a .safetensors file's header as `edit` leaves it; the data stays.
inline void EditHeader(const std::string& path,
                       const std::function<void(boost::json::object&)>& edit) {
  const std::string bytes = ReadBytes(path);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  boost::json::object header = boost::json::parse(bytes.substr(8, header_bytes)).as_object();
  edit(header);
  WriteBytes(path, WithHeader(boost::json::serialize(header), bytes.substr(8 + header_bytes)));
}

}  // namespace ultraspeed::worker
