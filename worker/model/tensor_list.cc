#include "worker/model/tensor_list.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/model/dropping_packer.h"
#include "worker/model/weights_loader.h"

namespace ultraspeed::worker {
namespace {

using kernels::WeightFormat;

constexpr int64_t kBlock = 128;

int64_t Blocks(int64_t count) { return (count + kBlock - 1) / kBlock; }

// What stands for a tensor's contents while only its name and shape matter.
struct Nothing {
  void AppendRows(const Nothing& /*rows*/) {}
};

// A Reader of weights_loader.h that writes down what it is asked for.
class TensorLister {
 public:
  Nothing Bf16AsFloat(const std::string& name, int64_t count) { return Add(name, "BF16", {count}); }
  Nothing F32(const std::string& name, std::vector<int64_t> shape) {
    return Add(name, "F32", std::move(shape));
  }
  Nothing Bf16(const std::string& name, int64_t rows, int64_t cols) {
    return Add(name, "BF16", {rows, cols});
  }
  Nothing Router(const std::string& name, int64_t rows, int64_t cols) {
    return Add(name, "F32", {rows, cols});
  }
  Nothing Bf16Matrix(const std::string& name, int64_t rows, int64_t cols) {
    return Add(name, "BF16", {rows, cols});
  }
  std::pair<Nothing, Nothing> Bf16MatrixPair(const std::string& name, int64_t rows,
                                             int64_t first_cols, int64_t second_cols) {
    Add(name, "BF16", {rows, first_cols + second_cols});
    return {};
  }
  Nothing GroupedFp8Matrix(const std::string& name, int64_t groups, int64_t group_rows,
                           int64_t cols) {
    Add(name, "F8_E4M3", {groups * group_rows, cols});
    return Add(name + "_scale_inv", "F32", {groups * Blocks(group_rows), Blocks(cols)});
  }
  Nothing Matrix(WeightFormat format, const std::string& name, int64_t rows, int64_t cols) {
    switch (format) {
      case WeightFormat::kBf16:
        return Bf16Matrix(name, rows, cols);
      case WeightFormat::kFp8Block128:
        return GroupedFp8Matrix(name, 1, rows, cols);
      case WeightFormat::kMxfp4:
        Add(name, "U8", {rows, cols / 2});
        tensors_.back().num_values = rows * cols;
        return Add(name + "_scale", "U8", {rows, cols / 32});
    }
    return {};
  }
  Nothing Mlp(WeightFormat format, const std::string& prefix, int64_t ffn_width, int64_t hidden) {
    Matrix(format, prefix + "gate_proj.weight", ffn_width, hidden);
    Matrix(format, prefix + "up_proj.weight", ffn_width, hidden);
    return Matrix(format, prefix + "down_proj.weight", hidden, ffn_width);
  }
  Nothing Expert(const ModelConfig& config, const std::string& prefix) {
    return Mlp(config.stored_expert_format(), prefix, config.expert_ffn_width, config.hidden);
  }
  absl::Status status() const { return absl::OkStatus(); }

  std::vector<TensorSpec> Take() { return std::move(tensors_); }

 private:
  Nothing Add(const std::string& name, const char* dtype, std::vector<int64_t> shape) {
    int64_t count = 1;
    for (const int64_t dimension : shape) count *= dimension;
    tensors_.push_back(
        {.name = name, .dtype = dtype, .shape = std::move(shape), .num_values = count});
    return {};
  }

  std::vector<TensorSpec> tensors_;
};

}  // namespace

int64_t TensorSpec::bytes() const {
  int64_t bytes = dtype == "F32" ? 4 : dtype == "BF16" ? 2 : 1;
  for (const int64_t dimension : shape) bytes *= dimension;
  return bytes;
}

std::vector<TensorSpec> TargetTensors(const ModelConfig& config) {
  TensorLister list;
  DroppingPacker pack;
  ReadTarget(list, pack, config, [](int /*layer*/) {});
  return list.Take();
}

std::vector<TensorSpec> DrafterTensors(const DrafterConfig& config) {
  if (config.num_layers == 0) return {};
  TensorLister list;
  DroppingPacker pack;
  ReadDrafter(list, pack, config, [](int /*layer*/) {});
  return list.Take();
}

std::vector<TensorSpec> PredictionHeadTensors(const ModelConfig& config, int num_heads) {
  TensorLister list;
  const int hidden = config.hidden, q_width = config.num_q_heads * config.v_head_dim;
  for (int head = 0; head < num_heads; ++head) {
    const std::string prefix = absl::StrCat(kPredictionHeadPrefix, "layers.", head, ".");
    const std::string attention = prefix + "self_attn.";
    list.Bf16Matrix(prefix + "eh_proj.weight", hidden, 2 * hidden);
    for (const char* norm :
         {"enorm", "hnorm", "final_layernorm", "input_layernorm", "pre_mlp_layernorm"}) {
      list.Bf16AsFloat(absl::StrCat(prefix, norm, ".weight"), hidden);
    }
    list.GroupedFp8Matrix(attention + "qkv_proj.weight", config.num_kv_heads,
                          config.qkv_shard_rows(), hidden);
    list.Bf16Matrix(attention + "o_proj.weight", hidden, q_width);
    list.Bf16AsFloat(attention + "attention_sink_bias", config.num_q_heads);
    list.Mlp(WeightFormat::kFp8Block128, prefix + "mlp.", config.dense_ffn_width, hidden);
  }
  return list.Take();
}

}  // namespace ultraspeed::worker
