#include "worker/cuda/resident_shape.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/resident/program.h"
#include "kernels/cuda/weight_layout.h"

namespace ultraspeed::worker::cuda {

namespace {

namespace resident = kernels::cuda::resident;
using resident::kBandRows;

}  // namespace

absl::Status CheckResidentShape(const ModelConfig& config, KvPrecision kv_precision) {
  absl::Status status;
  const auto require = [&](const char* name, int64_t value, bool accepted, const char* what) {
    if (accepted || !status.ok()) return;
    status = absl::InvalidArgumentError(
        absl::StrCat(name, ": is ", value, "; the resident engine takes ", what));
  };
  constexpr int kHiddenMax = resident::kPassSlabs * kernels::cuda::kSlabColumns;
  constexpr int kExpertWidthMax = 256;
  require("hidden_size", config.hidden, config.hidden % 128 == 0 && config.hidden <= kHiddenMax,
          "multiples of 128 up to 6144");
  require("moe_intermediate_size of a rank", config.expert_ffn_width,
          config.expert_ffn_width % 32 == 0 && config.expert_ffn_width <= kExpertWidthMax,
          "multiples of 32 up to 256");
  constexpr int kVocabularyMax = (1 << 20) - 1;  // tokens travel between ranks in 20 bits
  require("vocab_size", config.vocabulary, config.vocabulary <= kVocabularyMax, "up to 1048575");
  require("n_routed_experts", config.num_experts, config.num_experts <= resident::kExpertsMax,
          "up to 384");
  require("num_experts_per_tok", config.experts_per_token,
          config.experts_per_token * kBandRows <= resident::kSlotsMax, "up to 8");
  require("query heads of a key head", config.num_q_heads / config.num_kv_heads,
          config.num_q_heads / config.num_kv_heads <= 16, "up to 16");
  require("dflash block_size", config.drafter.block_size,
          config.drafter.num_layers == 0 || config.drafter.block_size <= kBandRows, "up to 8");
  require("dflash markov_rank", config.drafter.markov_rank,
          config.drafter.markov_rank <= resident::kMarkovRankMax, "up to 256");
  require("vocab_size of a rank", config.vocabulary,
          config.drafter.markov_rank == 0 || config.vocabulary % kernels::cuda::kTileRows == 0,
          "multiples of 16 where a Markov head drafts");
  constexpr int kChainVocabularyMax =
      resident::kChainTokensMax * 64;  // a GPU has 64 blocks at least
  require("vocab_size of a rank", config.vocabulary,
          config.drafter.markov_rank == 0 || config.vocabulary <= kChainVocabularyMax,
          "up to 262144 where a Markov head drafts");
  require("rotary dims", config.rotary_dims, config.rotary_dims == resident::kRotaryDims, "64");
  require("dflash rotary dims", config.drafter.rotary_dims,
          config.drafter.num_layers == 0 || config.drafter.rotary_dims == resident::kRotaryDims,
          "64");
  require("kv precision", 8, kv_precision == KvPrecision::kBf16, "bf16");
  return status;
}

bool HasResidentFormats(const TargetWeights& target) {
  return std::all_of(target.layers.begin(), target.layers.end(), [](const TargetLayer& layer) {
    return layer.experts.num_experts == 0 || layer.experts.format == kernels::WeightFormat::kMxfp4;
  });
}

}  // namespace ultraspeed::worker::cuda
