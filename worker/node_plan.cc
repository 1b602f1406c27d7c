#include "worker/node_plan.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "worker/model/served_shape.h"
#include "worker/model_executor.h"

namespace ultraspeed::worker {
namespace {

// Context, modules, graphs, activations of one pass, scratch, staging and 64 snapshots: more than
// the CUDA executor's own plan comes to at the served shape (3.9 GB with rounds of 2,048 rows and
// a context of a million).
constexpr int64_t kWorkingBytes = 5'000'000'000;
constexpr int64_t kContexts[] = {4096, 16384, 32768, 131072, 262144, 1048576};
constexpr char kShapePrefix[] = "shape:";
constexpr char kServedShape[] = "mimo-v2.5-pro";

double Gigabytes(int64_t bytes) { return static_cast<double>(bytes) / 1e9; }

int64_t RingPageTokens(int window, int max_batch_tokens) {
  return PagesOf(RingTokens(window, max_batch_tokens)) * kPageTokens;
}

int64_t ValueBytes(KvPrecision precision) { return precision == KvPrecision::kFp8 ? 1 : 2; }

int64_t CountLayers(const ModelConfig& config, AttentionKind kind) {
  return std::count(config.attention.begin(), config.attention.end(), kind);
}

// Keys and values of one position in one layer of one GPU's part.
int64_t PositionBytes(const ModelConfig& part, KvPrecision precision) {
  return int64_t{part.num_kv_heads} * (part.qk_head_dim + part.v_head_dim) * ValueBytes(precision);
}

int64_t DrafterPositionBytes(const DrafterConfig& part) {
  return int64_t{part.num_layers} * part.num_kv_heads * 2 * part.head_dim * 2;  // bf16
}

ContextPlan PlanContext(const NodePlan& plan, int64_t context) {
  const ModelConfig& part = plan.sharding.part;
  const NodePlanOptions& options = plan.options;
  const int64_t full = CountLayers(part, AttentionKind::kFull),
                sliding = CountLayers(part, AttentionKind::kSliding);
  const int64_t position_bytes = PositionBytes(part, options.kv_precision);
  const int64_t pages = PagesOf(context) * kPageTokens;
  ContextPlan out;
  out.context_tokens = context;
  out.gpu_bytes_per_sequence =
      position_bytes *
      (full * pages + sliding * RingPageTokens(part.window, options.max_batch_tokens));
  out.gpu_kv_bytes_per_round =
      position_bytes * (full * context + sliding * std::min<int64_t>(context, part.window));
  if (part.drafter.num_layers > 0) {
    out.gpu_bytes_per_sequence += DrafterPositionBytes(part.drafter) *
                                  RingPageTokens(part.drafter.window, options.max_batch_tokens);
    out.gpu_kv_bytes_per_round +=
        DrafterPositionBytes(part.drafter) * std::min<int64_t>(context, part.drafter.window);
  }
  out.num_sequences = plan.gpu_kv_bytes / out.gpu_bytes_per_sequence;
  return out;
}

int64_t DrafterContextBytes(const DrafterConfig& part) {
  return int64_t{part.num_layers} * 2 * part.num_kv_heads * part.head_dim * part.hidden * 2;
}

void PlanRound(NodePlan& plan) {
  const ModelConfig& part = plan.sharding.part;
  const bool drafts = part.drafter.num_layers > 0;
  plan.round_rows = part.draft_block();
  const double experts = part.num_experts;
  plan.distinct_experts =
      experts * (1 - std::pow(1 - part.experts_per_token / experts, plan.round_rows));
  const auto bytes = [&](TensorKind kind) { return plan.sharding[kind].gpu_bytes; };
  const auto add = [&](const char* name, int64_t gpu_bytes, std::string note = "") {
    if (gpu_bytes > 0) plan.round.push_back({name, gpu_bytes, std::move(note)});
  };
  const auto moe_layers = std::count(part.is_moe.begin(), part.is_moe.end(), true);
  add("experts",
      static_cast<int64_t>(static_cast<double>(bytes(TensorKind::kExperts)) / experts *
                           plan.distinct_experts),
      absl::StrFormat("%.1f of %d in each of %d layers: %d rows, uniform routing",
                      plan.distinct_experts, part.num_experts, moe_layers, plan.round_rows));
  add("qkv", bytes(TensorKind::kQkv));
  add("o_proj", bytes(TensorKind::kOutput));
  add("dense mlp", bytes(TensorKind::kDenseMlp));
  add("router", bytes(TensorKind::kRouter));
  add("norms, sinks", bytes(TensorKind::kNorms));
  add("head", (drafts ? 2 : 1) * bytes(TensorKind::kHead), drafts ? "to verify and to draft" : "");
  if (!drafts) return;
  add("draft block", bytes(TensorKind::kDrafterQkv) + bytes(TensorKind::kDrafterOutput) +
                         bytes(TensorKind::kDrafterMlp) + bytes(TensorKind::kDrafterNorms));
  add("draft context", bytes(TensorKind::kDrafterFeatures) + DrafterContextBytes(part.drafter),
      "features, k and v of committed rows");
}

}  // namespace

int64_t NodePlan::gpu_round_bytes() const {
  int64_t bytes = 0;
  for (const RoundPart& part : round) bytes += part.gpu_bytes;
  return bytes;
}

double NodePlan::FloorMs(int64_t gpu_bytes) const {
  return static_cast<double>(gpu_bytes) / (options.read_tb_per_second * 1e12) * 1e3;
}

absl::StatusOr<NodePlan> PlanNode(const ModelConfig& config, const NodePlanOptions& options) {
  absl::StatusOr<ShardingPlan> sharding = PlanSharding(config, options.num_gpus);
  if (!sharding.ok()) return sharding.status();
  NodePlan plan;
  plan.options = options;
  plan.model = config.name;
  plan.sharding = *std::move(sharding);
  const ModelConfig& part = plan.sharding.part;
  plan.gpu_memory_bytes = static_cast<int64_t>(options.gpu_memory_gb * 1e9);
  plan.gpu_weight_bytes = plan.sharding.total().gpu_bytes + DrafterContextBytes(part.drafter);
  plan.gpu_working_bytes = kWorkingBytes;
  plan.gpu_kv_bytes = plan.gpu_memory_bytes - plan.gpu_weight_bytes - plan.gpu_working_bytes;
  plan.gpu_kv_bytes_per_token =
      PositionBytes(part, options.kv_precision) * CountLayers(part, AttentionKind::kFull);
  if (plan.gpu_kv_bytes < 0) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "gpu-memory-gb: is %.1f; on %d GPU%s each holds %.2f GB of weights and needs %.2f GB to "
        "work: %.2f GB short",
        options.gpu_memory_gb, options.num_gpus, options.num_gpus == 1 ? "" : "s",
        Gigabytes(plan.gpu_weight_bytes), Gigabytes(plan.gpu_working_bytes),
        -Gigabytes(plan.gpu_kv_bytes)));
  }
  for (const int64_t context : kContexts) {
    if (context < config.context_tokens) plan.contexts.push_back(PlanContext(plan, context));
  }
  plan.contexts.push_back(PlanContext(plan, config.context_tokens));
  PlanRound(plan);
  return plan;
}

std::string ToTable(const NodePlan& plan) {
  std::string text = absl::StrCat(plan.model, " on ", plan.sharding.ToString(), "\n");
  absl::StrAppendFormat(&text,
                        "memory of one GPU, GB: %.2f weights + %.2f to work + %.2f keys and values "
                        "= %.2f\n",
                        Gigabytes(plan.gpu_weight_bytes), Gigabytes(plan.gpu_working_bytes),
                        Gigabytes(plan.gpu_kv_bytes), Gigabytes(plan.gpu_memory_bytes));
  absl::StrAppendFormat(
      &text, "keys and values (%s): %d bytes a token in full layers, plus rings a sequence\n\n",
      plan.options.kv_precision == KvPrecision::kFp8 ? "fp8" : "bf16", plan.gpu_kv_bytes_per_token);
  absl::StrAppendFormat(&text, "%-16s %10s %10s   %s\n", "read in a round", "GB a GPU", "ms", "");
  for (const RoundPart& part : plan.round) {
    absl::StrAppendFormat(&text, "%-16s %10.3f %10.3f   %s\n", part.name, Gigabytes(part.gpu_bytes),
                          plan.FloorMs(part.gpu_bytes), part.note);
  }
  absl::StrAppendFormat(&text, "%-16s %10.3f %10.3f   at %.2f TB/s, one sequence\n\n", "all",
                        Gigabytes(plan.gpu_round_bytes()), plan.FloorMs(plan.gpu_round_bytes()),
                        plan.options.read_tb_per_second);
  absl::StrAppendFormat(&text, "%10s %14s %10s %14s %14s %16s\n", "context", "GB a sequence",
                        "sequences", "tokens", "KV GB a round", "round floor, ms");
  for (const ContextPlan& context : plan.contexts) {
    absl::StrAppendFormat(&text, "%10d %14.3f %10d %14d %14.3f %16.3f\n", context.context_tokens,
                          Gigabytes(context.gpu_bytes_per_sequence), context.num_sequences,
                          context.tokens(), Gigabytes(context.gpu_kv_bytes_per_round),
                          plan.FloorMs(plan.gpu_round_bytes() + context.gpu_kv_bytes_per_round));
  }
  return text;
}

boost::json::object ToJson(const NodePlan& plan) {
  boost::json::object kinds, round;
  for (size_t i = 0; i < kTensorKinds; ++i) {
    const KindPlan& kind = plan.sharding.kinds[i];
    if (kind.num_tensors == 0) continue;
    kinds[Name(static_cast<TensorKind>(i))] = {
        {"tensors", kind.num_tensors}, {"values", kind.values},
        {"bytes", kind.bytes},         {"gpu_values", kind.gpu_values},
        {"gpu_bytes", kind.gpu_bytes}, {"split", HowSplit(static_cast<TensorKind>(i))}};
  }
  for (const RoundPart& part : plan.round) round[part.name] = part.gpu_bytes;
  boost::json::array contexts;
  for (const ContextPlan& context : plan.contexts) {
    contexts.push_back(
        {{"context_tokens", context.context_tokens},
         {"gpu_bytes_per_sequence", context.gpu_bytes_per_sequence},
         {"sequences", context.num_sequences},
         {"tokens", context.tokens()},
         {"gpu_kv_bytes_per_round", context.gpu_kv_bytes_per_round},
         {"floor_ms", plan.FloorMs(plan.gpu_round_bytes() + context.gpu_kv_bytes_per_round)}});
  }
  const ModelConfig& part = plan.sharding.part;
  return {{"model", plan.model},
          {"gpus", plan.sharding.num_gpus},
          {"part",
           {{"query_heads", part.num_q_heads},
            {"key_heads", part.num_kv_heads},
            {"expert_width", part.expert_ffn_width},
            {"mlp_width", part.dense_ffn_width},
            {"vocabulary", part.vocabulary}}},
          {"kinds", std::move(kinds)},
          {"gpu_memory_bytes", plan.gpu_memory_bytes},
          {"gpu_weight_bytes", plan.gpu_weight_bytes},
          {"gpu_working_bytes", plan.gpu_working_bytes},
          {"gpu_kv_bytes", plan.gpu_kv_bytes},
          {"gpu_kv_bytes_per_token", plan.gpu_kv_bytes_per_token},
          {"kv", plan.options.kv_precision == KvPrecision::kFp8 ? "fp8" : "bf16"},
          {"round_rows", plan.round_rows},
          {"distinct_experts_per_layer", plan.distinct_experts},
          {"gpu_bytes_per_round_by_kind", std::move(round)},
          {"gpu_bytes_per_round", plan.gpu_round_bytes()},
          {"read_tb_per_second", plan.options.read_tb_per_second},
          {"floor_ms", plan.FloorMs(plan.gpu_round_bytes())},
          {"contexts", std::move(contexts)}};
}

absl::StatusOr<ModelConfig> ConfigForPlan(const std::string& model) {
  absl::string_view shape = model;
  if (!absl::ConsumePrefix(&shape, kShapePrefix)) return LoadModelConfig(model);
  if (shape == kServedShape) return MimoV25ProShape();
  return absl::InvalidArgumentError(
      absl::StrCat("model: is ", model, "; the only known shape is ", kShapePrefix, kServedShape));
}

}  // namespace ultraspeed::worker
