#include "worker/model/weights.h"

#include <utility>

#include "worker/model/weights_loader.h"

namespace ultraspeed::worker {
namespace {

constexpr int kFp8BlockRows = 128;

// Vectors stay as they were read; matrices are repacked. What an earlier error left empty stays
// empty.
struct HostPacker {
  using Storage = HostStorage;

  std::vector<float> Floats(std::vector<float> values) { return values; }
  std::vector<float> Router(std::vector<float> values, const std::vector<float>& /*norm*/,
                            int /*num_experts*/) {
    return values;
  }
  std::vector<kernels::bf16> Bf16s(std::vector<kernels::bf16> values) { return values; }
  kernels::PackedMatrix Matrix(const StoredMatrix& source) {
    if (source.empty()) return {};
    return kernels::PackedMatrix::Pack(source.view());
  }
  kernels::MlpWeights Mlp(const StoredMlp& source) {
    return {Matrix(source.gate), Matrix(source.up), Matrix(source.down)};
  }
  std::vector<kernels::MlpWeights> NewExperts(const ModelConfig& /*config*/) { return {}; }
  void AddExpert(std::vector<kernels::MlpWeights>& experts, int /*expert*/,
                 const StoredMlp& source) {
    experts.push_back(Mlp(source));
  }
};

}  // namespace

int QkvGroupRows(const ModelConfig& config) {
  if (config.num_kv_heads == 1) return config.qkv_shard_rows();
  return (config.qkv_shard_rows() + kFp8BlockRows - 1) / kFp8BlockRows * kFp8BlockRows;
}

absl::StatusOr<ModelWeights> LoadModelWeights(const std::string& folder, const ModelConfig& config,
                                              const LoadOptions& options) {
  HostPacker pack;
  return LoadModelWeightsWith(pack, folder, config, options);
}

}  // namespace ultraspeed::worker
