// Writes checkpoints in the published layout with random contents: real names, types, shapes and
// file split, any number of layers and experts.
//
// For exercising loading, sharding and the forward passes where the published files are not at
// hand. Callers: the program ultraspeed-synthetic; tests, which also damage the parts. Values have
// the size that trained ones have, so that activations neither vanish nor explode. Thread: any one
// thread.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/model/load_options.h"
#include "worker/model/tensor_list.h"

namespace ultraspeed::worker {

// ---- The files of a folder, as text.
boost::json::object TargetConfigJson(const ModelConfig& config);   // config.json
boost::json::object DrafterConfigJson(const ModelConfig& config);  // dflash/config.json
boost::json::object GenerationJson(const ModelConfig& config);     // generation_config.json
// One token for each id below `vocabulary_used`, the last one the drafter's mask.
boost::json::object TokenizerJson(int vocabulary_used);

// ---- Contents.
// Repeatable random contents; the same seed and the same order of calls give the same bytes.
class RandomContents {
 public:
  explicit RandomContents(uint64_t seed) : state_(seed) {}

  // A tensor's bytes, in pieces of at most a few MiB.
  void Write(const TensorSpec& tensor, const std::function<void(std::string_view)>& write);
  std::string Bytes(const TensorSpec& tensor);

 private:
  uint64_t Next();  // splitmix64
  // Normally distributed values, drawn from a table of kTableSize of them.
  const std::vector<float>& Normal();

  uint64_t state_;
  std::vector<float> normal_;
};

// ---- Containers.
struct TensorFile {
  std::string name;                 // inside its folder
  std::vector<TensorSpec> tensors;  // in file order
};
// Length and header of a .safetensors file whose data lies in this order.
std::string SafetensorsHead(const std::vector<TensorSpec>& tensors);
// weight_map of model.safetensors.index.json.
boost::json::object IndexJson(const std::vector<TensorFile>& files);
std::string StoredZipBytes(const std::vector<std::pair<std::string, std::string>>& entries);
// data.pkl of mask_embedding.pt.
std::string MaskPickle(int64_t mask_token_id, int hidden);
std::string MaskArchive(const std::string& pickle, const std::string& storage);

// The split of the release: two files a layer (its experts in halves), prediction heads in a file
// of their own, the drafter in two.
std::vector<TensorFile> TargetFiles(const ModelConfig& config, int num_prediction_heads);
std::vector<TensorFile> DrafterFiles(const DrafterConfig& config);

// ---- A folder.
// The first `num_layers` layers with `num_experts` experts; taps beyond them are spread anew.
// INVALID_ARGUMENT names what is out of range.
absl::StatusOr<ModelConfig> Shortened(ModelConfig config, int num_layers, int num_experts);

struct SyntheticOptions {
  std::string folder;  // made if it does not exist; must be empty
  uint64_t seed = 1;
  int num_prediction_heads = kPublishedPredictionHeads;
  LoadProgress progress = {};  // may be null
};
// RESOURCE_EXHAUSTED if the disk has too little room, with the numbers.
absl::Status WriteSyntheticFolder(const ModelConfig& config, const SyntheticOptions& options);

}  // namespace ultraspeed::worker
