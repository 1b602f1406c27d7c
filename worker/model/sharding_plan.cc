#include "worker/model/sharding_plan.h"

#include <algorithm>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "kernels/check.h"

namespace ultraspeed::worker {
namespace {

using kernels::WeightFormat;

constexpr int kGpuCounts[] = {1, 2, 4, 8};
constexpr int kFp8Block = 128;
constexpr int kMxfp4Block = 32;
constexpr int kBf16Columns = 32;  // what one matrix product takes at once

struct Rule {
  const char* ending;
  Split split;
  TensorKind target;
  TensorKind drafter;
};

constexpr Rule kRules[] = {
    {"markov_w1.weight", Split::kWhole, TensorKind::kDrafterMarkov, TensorKind::kDrafterMarkov},
    {"markov_w2.weight", Split::kWhole, TensorKind::kDrafterMarkov, TensorKind::kDrafterMarkov},
    {"markov_head.gate_proj.weight", Split::kWhole, TensorKind::kDrafterMarkov,
     TensorKind::kDrafterMarkov},
    {"markov_head.gate_proj.bias", Split::kWhole, TensorKind::kDrafterMarkov,
     TensorKind::kDrafterMarkov},
    {"qkv_proj.weight", Split::kRows, TensorKind::kQkv, TensorKind::kDrafterQkv},
    {"q_proj.weight", Split::kRows, TensorKind::kQkv, TensorKind::kDrafterQkv},
    {"k_proj.weight", Split::kRows, TensorKind::kQkv, TensorKind::kDrafterQkv},
    {"v_proj.weight", Split::kRows, TensorKind::kQkv, TensorKind::kDrafterQkv},
    {"o_proj.weight", Split::kColumns, TensorKind::kOutput, TensorKind::kDrafterOutput},
    {"attention_sink_bias", Split::kRows, TensorKind::kNorms, TensorKind::kDrafterNorms},
    {"gate_proj.weight", Split::kRows, TensorKind::kDenseMlp, TensorKind::kDrafterMlp},
    {"up_proj.weight", Split::kRows, TensorKind::kDenseMlp, TensorKind::kDrafterMlp},
    {"down_proj.weight", Split::kColumns, TensorKind::kDenseMlp, TensorKind::kDrafterMlp},
    {"mlp.gate.weight", Split::kWhole, TensorKind::kRouter, TensorKind::kRouter},
    {"e_score_correction_bias", Split::kWhole, TensorKind::kRouter, TensorKind::kRouter},
    {"embed_tokens.weight", Split::kRows, TensorKind::kEmbedding, TensorKind::kEmbedding},
    {"lm_head.weight", Split::kRows, TensorKind::kHead, TensorKind::kHead},
    {"fc.weight", Split::kWhole, TensorKind::kDrafterFeatures, TensorKind::kDrafterFeatures},
    {"eh_proj.weight", Split::kWhole, TensorKind::kCount, TensorKind::kCount},
    {"norm.weight", Split::kWhole, TensorKind::kNorms, TensorKind::kDrafterNorms},
};

const Rule& RuleOf(std::string_view tensor) {
  absl::string_view name(tensor.data(), tensor.size());
  if (!absl::ConsumeSuffix(&name, "_scale_inv")) absl::ConsumeSuffix(&name, "_scale");
  const Rule* const rule = std::find_if(std::begin(kRules), std::end(kRules), [&](const Rule& r) {
    return absl::EndsWith(name, r.ending);
  });
  KERNELS_CHECK(rule != std::end(kRules), ==, true);
  return *rule;
}

TensorKind KindOf(std::string_view tensor, bool of_drafter) {
  const Rule& rule = RuleOf(tensor);
  if (of_drafter) return rule.drafter;
  const bool of_expert =
      absl::StrContains(absl::string_view(tensor.data(), tensor.size()), ".mlp.experts.");
  return of_expert ? TensorKind::kExperts : rule.target;
}

// The first of several conditions that fails.
class Divisor {
 public:
  explicit Divisor(int num_gpus) : num_gpus_(num_gpus) {}

  // `value` becomes one GPU's part of it, which must be a multiple of `unit`.
  void Divide(const char* key, int unit, int& value) {
    const int multiple = unit * num_gpus_;
    if (num_gpus_ == 1) return;
    if (value % multiple != 0) {
      if (status_.ok()) {
        status_ = absl::InvalidArgumentError(absl::StrCat(
            key, ": is ", value, "; ", num_gpus_, " GPUs need a multiple of ", multiple,
            unit > 1 ? absl::StrCat(" (", num_gpus_, " times blocks of ", unit, ")") : ""));
      }
      return;
    }
    value /= num_gpus_;
  }
  const absl::Status& status() const { return status_; }

 private:
  const int num_gpus_;
  absl::Status status_;
};

void AddTensors(const std::vector<TensorSpec>& tensors, bool of_drafter, ShardingPlan& plan) {
  for (const TensorSpec& tensor : tensors) {
    KindPlan& kind = plan.kinds[static_cast<size_t>(KindOf(tensor.name, of_drafter))];
    const int64_t parts = SplitOf(tensor.name) == Split::kWhole ? 1 : plan.num_gpus;
    KERNELS_CHECK(tensor.bytes() % parts, ==, 0);
    KERNELS_CHECK(tensor.num_values % parts, ==, 0);
    kind.num_tensors += 1;
    kind.values += tensor.num_values;
    kind.bytes += tensor.bytes();
    kind.gpu_values += tensor.num_values / parts;
    kind.gpu_bytes += tensor.bytes() / parts;
  }
}

}  // namespace

Split SplitOf(std::string_view tensor) { return RuleOf(tensor).split; }

std::vector<int64_t> PartShape(const TensorSpec& tensor, int num_gpus) {
  std::vector<int64_t> shape = tensor.shape;
  const Split split = SplitOf(tensor.name);
  if (split == Split::kWhole) return shape;
  int64_t& dimension = split == Split::kRows ? shape.front() : shape.back();
  KERNELS_CHECK(dimension % num_gpus, ==, 0);
  dimension /= num_gpus;
  return shape;
}

absl::StatusOr<ModelConfig> PartOf(const ModelConfig& config, int num_gpus) {
  if (std::find(std::begin(kGpuCounts), std::end(kGpuCounts), num_gpus) == std::end(kGpuCounts)) {
    return absl::InvalidArgumentError(
        absl::StrCat("gpus: is ", num_gpus, "; must be 1, 2, 4 or 8"));
  }
  ModelConfig part = config;
  Divisor divisor(num_gpus);
  const auto has = [&](bool moe) {
    return std::find(config.is_moe.begin(), config.is_moe.end(), moe) != config.is_moe.end();
  };
  divisor.Divide("num_key_value_heads", 1, part.num_kv_heads);
  divisor.Divide("num_attention_heads", 1, part.num_q_heads);
  int output_columns = config.num_q_heads * config.v_head_dim;
  divisor.Divide("num_attention_heads times v_head_dim", kBf16Columns, output_columns);
  if (has(/*moe=*/false)) divisor.Divide("intermediate_size", kFp8Block, part.dense_ffn_width);
  if (has(/*moe=*/true)) {
    divisor.Divide("moe_intermediate_size",
                   config.stored_expert_format() == WeightFormat::kMxfp4 ? kMxfp4Block : kFp8Block,
                   part.expert_ffn_width);
  }
  divisor.Divide("vocab_size", 1, part.vocabulary);
  if (config.drafter.num_layers > 0) {
    DrafterConfig& drafter = part.drafter;
    divisor.Divide("dflash num_key_value_heads", 1, drafter.num_kv_heads);
    divisor.Divide("dflash num_attention_heads", 1, drafter.num_q_heads);
    divisor.Divide("dflash intermediate_size", kBf16Columns, drafter.ffn_width);
  }
  if (!divisor.status().ok()) return divisor.status();
  return part;
}

const char* Name(TensorKind kind) {
  constexpr const char* kNames[kTensorKinds] = {
      "experts",      "qkv",       "o_proj",       "dense mlp",      "router",
      "embedding",    "head",      "norms, sinks", "draft features", "draft qkv",
      "draft o_proj", "draft mlp", "draft norms",  "draft markov"};
  return kNames[static_cast<size_t>(kind)];
}

const char* HowSplit(TensorKind kind) {
  switch (kind) {
    case TensorKind::kExperts:
    case TensorKind::kDenseMlp:
    case TensorKind::kDrafterMlp:
      return "rows of gate and up, columns of down";
    case TensorKind::kQkv:
      return "whole fused shards";
    case TensorKind::kDrafterQkv:
      return "heads";
    case TensorKind::kOutput:
    case TensorKind::kDrafterOutput:
      return "columns, by head";
    case TensorKind::kEmbedding:
    case TensorKind::kHead:
      return "vocabulary";
    case TensorKind::kNorms:
    case TensorKind::kDrafterNorms:
      return "norms whole, sinks by head";
    case TensorKind::kRouter:
    case TensorKind::kDrafterFeatures:
    case TensorKind::kDrafterMarkov:
    case TensorKind::kCount:
      break;
  }
  return "whole on every GPU";
}

KindPlan ShardingPlan::total() const {
  KindPlan total;
  for (const KindPlan& kind : kinds) {
    total.num_tensors += kind.num_tensors;
    total.values += kind.values;
    total.bytes += kind.bytes;
    total.gpu_values += kind.gpu_values;
    total.gpu_bytes += kind.gpu_bytes;
  }
  return total;
}

std::string ShardingPlan::ToString() const {
  const auto gigabytes = [](int64_t bytes) { return static_cast<double>(bytes) / 1e9; };
  const auto line = [&](const char* name, const KindPlan& k, const char* how) {
    return absl::StrFormat("%-16s %9d %10.3f %10.3f   %s\n", name, k.num_tensors,
                           gigabytes(k.bytes), gigabytes(k.gpu_bytes), how);
  };
  std::string text = absl::StrFormat(
      "%d GPU%s; each: %d query heads on %d key heads, expert width %d, MLP width %d, vocabulary "
      "%d",
      num_gpus, num_gpus == 1 ? "" : "s", part.num_q_heads, part.num_kv_heads,
      part.expert_ffn_width, part.dense_ffn_width, part.vocabulary);
  if (part.drafter.num_layers > 0) {
    absl::StrAppendFormat(&text, "; drafter: %d on %d heads, MLP width %d",
                          part.drafter.num_q_heads, part.drafter.num_kv_heads,
                          part.drafter.ffn_width);
  }
  absl::StrAppendFormat(&text, "\n%-16s %9s %10s %10s   %s\n", "kind", "tensors", "GB", "GB a GPU",
                        "how");
  for (size_t i = 0; i < kTensorKinds; ++i) {
    const auto kind = static_cast<TensorKind>(i);
    if (kinds[i].num_tensors > 0) text += line(Name(kind), kinds[i], HowSplit(kind));
  }
  text += line("all", total(), "");
  return text;
}

absl::StatusOr<ShardingPlan> PlanSharding(const ModelConfig& config, int num_gpus) {
  absl::StatusOr<ModelConfig> part = PartOf(config, num_gpus);
  if (!part.ok()) return part.status();
  ShardingPlan plan;
  plan.num_gpus = num_gpus;
  plan.part = *std::move(part);
  AddTensors(TargetTensors(config), /*of_drafter=*/false, plan);
  AddTensors(DrafterTensors(config.drafter), /*of_drafter=*/true, plan);
  return plan;
}

}  // namespace ultraspeed::worker
