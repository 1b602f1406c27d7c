// What a CudaExecutor is made of and how it comes to be: the checks of a model's shape, the memory
// that it takes, its weights.
#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/check.h"
#include "worker/cuda/check.h"
#include "worker/cuda/cuda_executor.h"
#include "worker/cuda/device.h"
#include "worker/cuda/resident_shape.h"
#include "worker/model/vocabulary.h"

namespace ultraspeed::worker::cuda {
namespace {

namespace ops = kernels::cuda;

constexpr int kLogitRowsMin = 64;  // of one call, for evaluation

PassLimits LimitsOf(const ModelConfig& config, const CudaOptions& options) {
  const ExecutorOptions& executor = options.executor;
  const int64_t num_pages = PagesOf(executor.kv_tokens);
  return {.max_sequences = executor.max_sequences,
          .max_rows = executor.max_batch_tokens,
          .max_logits = std::max(kLogitRowsMin, executor.max_sequences * config.draft_block()),
          .num_pages = static_cast<int>(num_pages),
          .num_snapshots = executor.num_snapshots,
          .positions = std::min(config.context_tokens, num_pages * kPageTokens) + kDraftBlockMax,
          .kv_format = executor.kv_precision == KvPrecision::kFp8 ? ops::KvFormat::kFp8
                                                                  : ops::KvFormat::kBf16};
}

// The drafter's mask is never chosen; -1 = there is none among the used tokens.
int32_t BannedToken(const ModelConfig& config, int vocabulary_used) {
  const bool has_mask =
      config.drafter.num_layers > 0 && config.drafter.mask_token_id < vocabulary_used;
  return has_mask ? config.drafter.mask_token_id : -1;
}

// `num_counted_layers`: MoE layers whose choices of experts come back to the host.
PassCapacity PrefillCapacity(const ModelConfig& config, const PassLimits& limits,
                             int num_counted_layers) {
  return {.sequences = limits.max_sequences,
          .tokens = limits.max_rows,
          .samples = limits.max_sequences,
          .drafts = 0,
          .pages = static_cast<int>(PagesOf(limits.positions)),
          .expert_choices = num_counted_layers * limits.max_rows * config.experts_per_token};
}

PassCapacity DecodeCapacity(const ModelConfig& config, const PassLimits& limits,
                            int num_counted_layers, int block) {
  const int rows = limits.max_sequences * block;
  return {.sequences = limits.max_sequences,
          .tokens = limits.max_sequences,
          .samples = rows,
          .drafts = limits.max_sequences * (block - 1),
          .pages = static_cast<int>(PagesOf(limits.positions)),
          .expert_choices = num_counted_layers * rows * config.experts_per_token};
}

std::string DeviceText() {
  int device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  return absl::StrFormat("cuda %s, %d SMs, %.0f GB", properties.name,
                         properties.multiProcessorCount,
                         static_cast<double>(properties.totalGlobalMem) / 1e9);
}

}  // namespace

CudaExecutor::Model::Model(const ModelConfig& config, const ModelConfig& part, ModelWeights loaded,
                           const CudaOptions& options, const PassLimits& limits,
                           int vocabulary_used, const RankLink& link, DeviceArena& arena,
                           cudaStream_t stream)
    : weights(std::move(loaded)),
      target(part, weights.target, limits, arena, workspace, link),
      num_counted_layers(options.executor.count_experts ? target.num_moe_layers() : 0),
      prefill(PrefillCapacity(config, limits, num_counted_layers), arena),
      masks(limits.max_logits, config.vocabulary, vocabulary_used, arena) {
  if (config.drafter.num_layers > 0) {
    drafter = std::make_unique<DrafterForward>(part, weights.drafter, weights.target, limits, arena,
                                               workspace, link);
  }
  for (int block = 1; block <= config.draft_block(); ++block)
    decode.emplace_back(DecodeCapacity(config, limits, num_counted_layers, block), arena);
  std::vector<int32_t> indices(
      static_cast<size_t>(std::max(options.executor.max_batch_tokens, limits.max_logits)));
  std::iota(indices.begin(), indices.end(), 0);
  row_indices = arena.Upload(MemoryKind::kRoundData, indices);
  logits = arena.Take<float>(MemoryKind::kActivations, static_cast<size_t>(limits.max_logits) *
                                                           static_cast<size_t>(config.vocabulary));
  workspace.Require(ops::SampleWorkspaceBytes(limits.max_logits, config.vocabulary));
  workspace.TakeFrom(arena);
  if (options.executor.resident && CheckResidentShape(part, options.executor.kv_precision).ok() &&
      HasResidentFormats(weights.target)) {
    const bool alone = options.num_ranks_alone > 1;
    resident = std::make_unique<ResidentEngine>(
        part, weights, target, drafter.get(), limits.positions,
        BannedToken(config, vocabulary_used), vocabulary_used, options.wait_ns_max,
        ResidentRanks{.num_ranks = alone ? options.num_ranks_alone : link.rank.count,
                      .index = link.rank.index,
                      .alone = alone},
        arena, stream);
  }
}

MemoryPlan PlanMemory(const ModelConfig& config, const CudaOptions& options) {
  const absl::StatusOr<ModelConfig> part = PartOf(config, options.executor.num_ranks);
  KERNELS_CHECK(part.ok(), ==, true);
  DeviceArena counting;
  DevicePacker pack(counting, nullptr, nullptr);
  ModelWeights shape = ShapeModelWeights(*part, pack);
  const RankLink link = {.rank = {.index = 0, .count = options.executor.num_ranks}};
  const CudaExecutor::Model model(config, *part, std::move(shape), options,
                                  LimitsOf(config, options), config.vocabulary, link, counting,
                                  nullptr);
  counting.TakeBytes(MemoryKind::kStaging, pack.staging_bytes());
  return counting.taken();
}

absl::Status CheckShape(const ModelConfig& config) {
  absl::Status status;
  const auto require = [&](const char* name, int value, bool accepted, const char* what) {
    if (accepted || !status.ok()) return;
    status = absl::InvalidArgumentError(absl::StrCat(
        name, ": is ", value, "; the CUDA kernels take ", what, "; --device cpu takes it"));
  };
  const auto require_multiple = [&](const char* name, int value, int multiple) {
    require(name, value, value % multiple == 0, absl::StrCat("multiples of ", multiple).c_str());
  };
  const DrafterConfig& drafter = config.drafter;
  const int expert_multiple = config.expert_format == kernels::WeightFormat::kMxfp4 ? 32 : 128;
  require_multiple("hidden_size", config.hidden, 128);
  require_multiple("intermediate_size", config.dense_ffn_width, 128);
  require_multiple("moe_intermediate_size", config.expert_ffn_width, expert_multiple);
  require("head_dim", config.qk_head_dim, config.qk_head_dim == 128 || config.qk_head_dim == 192,
          "128 and 192");
  require("v_head_dim", config.v_head_dim, config.v_head_dim == 128, "128");
  require("query heads of a key head", config.num_q_heads / config.num_kv_heads,
          config.num_q_heads / config.num_kv_heads <= 16, "up to 16");
  if (drafter.num_layers > 0) {
    require("dflash head_dim", drafter.head_dim, drafter.head_dim == 128, "128");
    require("dflash query heads of a key head", drafter.num_q_heads / drafter.num_kv_heads,
            drafter.num_q_heads / drafter.num_kv_heads <= 16, "up to 16");
  }
  return status;
}

absl::StatusOr<ModelSource> ReadSource(const CudaOptions& options) {
  const std::string& folder = options.executor.model_folder;
  absl::StatusOr<ModelConfig> config = LoadModelConfig(folder, options.executor.experts);
  if (!config.ok()) return config.status();
  absl::StatusOr<ModelSource> source = RandomSource(*config, options);
  if (!source.ok()) return source;
  const absl::StatusOr<int> vocabulary_used = CountUsedTokens(folder, config->vocabulary);
  if (!vocabulary_used.ok()) return vocabulary_used.status();
  source->vocabulary_used = *vocabulary_used;
  source->random = false;
  return source;
}

absl::StatusOr<ModelSource> RandomSource(const ModelConfig& config, const CudaOptions& options) {
  if (absl::Status status = ValidateOptions(options.executor); !status.ok()) return status;
  if (options.executor.drafter_precision == DrafterPrecision::kFp8) {
    return absl::InvalidArgumentError(
        "drafter_precision: is fp8; the CUDA executor takes bf16 only");
  }
  absl::StatusOr<ModelConfig> part = PartOf(config, options.executor.num_ranks);
  if (!part.ok()) return part.status();
  if (absl::Status status = CheckShape(*part); !status.ok()) return status;
  return ModelSource{.config = config,
                     .part = *std::move(part),
                     .vocabulary_used = config.vocabulary,
                     .random = true};
}

absl::Status CudaExecutor::Build(bool random, const LoadOptions& load) {
  const MemoryPlan plan = PlanMemory(config_, options_);
  size_t free_bytes = 0, total_bytes = 0;
  CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  if (absl::Status status = CheckFits(plan, free_bytes); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<DeviceArena>> arena = DeviceArena::Create(plan);
  if (!arena.ok()) return arena.status();
  arena_ = *std::move(arena);
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  CUDA_CHECK(cudaEventCreateWithFlags(&round_done_, cudaEventDisableTiming));

  DevicePacker pack(*arena_, arena_->TakeBytes(MemoryKind::kStaging, plan[MemoryKind::kStaging]),
                    stream_);
  absl::StatusOr<ModelWeights> weights =
      random ? ShapeModelWeights(part_, pack)
             : LoadModelWeights(options_.executor.model_folder, config_, pack, load);
  if (!weights.ok()) return weights.status();
  model_ = std::make_unique<Model>(config_, part_, *std::move(weights), options_, limits_,
                                   vocabulary_used_, link_, *arena_, stream_);
  KERNELS_CHECK(arena_->taken().total(), ==, plan.total());
  model_->target.AddBytes(bytes_);
  if (model_->drafter != nullptr) model_->drafter->AddBytes(bytes_);
  CUDA_CHECK(cudaDeviceSynchronize());
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CudaExecutor>> CudaExecutor::Create(const CudaOptions& options) {
  if (absl::Status status = CudaUsable(); !status.ok()) return status;
  const absl::StatusOr<ModelSource> source = ReadSource(options);
  if (!source.ok()) return source.status();
  return CreateRank(*source, options, {}, options.executor.load());
}

absl::StatusOr<std::unique_ptr<CudaExecutor>> CudaExecutor::CreateRandom(
    const ModelConfig& config, const CudaOptions& options) {
  if (absl::Status status = CudaUsable(); !status.ok()) return status;
  const absl::StatusOr<ModelSource> source = RandomSource(config, options);
  if (!source.ok()) return source.status();
  return CreateRank(*source, options, {}, {});
}

absl::StatusOr<std::unique_ptr<CudaExecutor>> CudaExecutor::CreateRank(const ModelSource& source,
                                                                       const CudaOptions& options,
                                                                       const RankLink& link,
                                                                       const LoadOptions& load) {
  KERNELS_CHECK(link.rank.count, ==, options.executor.num_ranks);
  KERNELS_CHECK(load.rank.count, ==, link.rank.count);
  KERNELS_CHECK(load.rank.index, ==, link.rank.index);
  std::unique_ptr<CudaExecutor> executor(new CudaExecutor(source, options, link));
  if (absl::Status status = executor->Build(source.random, load); !status.ok()) return status;
  return executor;
}

CudaExecutor::CudaExecutor(const ModelSource& source, const CudaOptions& options,
                           const RankLink& link)
    : config_(source.config),
      part_(source.part),
      link_(link),
      options_(options),
      limits_(LimitsOf(config_, options)),
      vocabulary_used_(source.vocabulary_used),
      banned_token_(BannedToken(config_, vocabulary_used_)),
      device_(DeviceText()),
      expert_seen_(static_cast<size_t>(config_.num_experts)) {}

CudaExecutor::~CudaExecutor() {
  if (model_ != nullptr && model_->resident != nullptr && !link_.divided())
    model_->resident->Yield();
  if (stream_ != nullptr) CUDA_CHECK(cudaStreamSynchronize(stream_));
  DropGraphs();
  model_.reset();
  if (round_done_ != nullptr) CUDA_CHECK(cudaEventDestroy(round_done_));
  if (stream_ != nullptr) CUDA_CHECK(cudaStreamDestroy(stream_));
}

}  // namespace ultraspeed::worker::cuda
