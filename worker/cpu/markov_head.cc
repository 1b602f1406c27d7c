#include "worker/cpu/markov_head.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"

namespace ultraspeed::worker {

MarkovForward::MarkovForward(const DrafterConfig& config, const MarkovHead& weights, int max_rows,
                             kernels::ThreadPool& pool)
    : rank_(config.markov_rank),
      vocabulary_(config.vocabulary),
      max_rows_(max_rows),
      weights_(weights),
      pool_(pool) {
  const auto rows = static_cast<size_t>(max_rows), rank = static_cast<size_t>(rank_);
  embedded_ = ZeroedArray<kernels::bf16>(rows * rank);
  gated_ = ZeroedArray<kernels::bf16>(rows * rank);
  gate_ = ZeroedArray<float>(rows * rank);
  bias_ = ZeroedArray<float>(rows * static_cast<size_t>(vocabulary_));
}

void MarkovForward::AddBias(absl::Span<const MarkovRow> rows) {
  const auto rank = static_cast<size_t>(rank_), vocabulary = static_cast<size_t>(vocabulary_);
  const int count = static_cast<int>(rows.size());
  KERNELS_CHECK(count, <=, max_rows_);
  for (size_t t = 0; t < rows.size(); ++t) {
    std::copy_n(&weights_.previous[static_cast<size_t>(rows[t].previous) * rank], rank,
                &embedded_[t * rank]);
  }
  const kernels::bf16* state = embedded_.data();
  if (weights_.gate.num_rows() > 0) {
    kernels::MatMul(pool_, weights_.gate_previous, embedded_.data(), count, rank_, gate_.data(),
                    rank_);
    for (size_t i = 0; i < rows.size() * rank; ++i) {
      const float x = gate_[i] + rows[i / rank].gate[i % rank] + weights_.gate_bias[i % rank];
      gated_[i] = kernels::ToBf16(kernels::FromBf16(embedded_[i]) / (1.0f + std::exp(-x)));
    }
    state = gated_.data();
  }
  kernels::MatMul(pool_, weights_.next, state, count, rank_, bias_.data(), vocabulary_);
  for (size_t t = 0; t < rows.size(); ++t) {
    const float* const bias = &bias_[t * vocabulary];
    for (size_t i = 0; i < vocabulary; ++i) rows[t].logits[i] += bias[i];
  }
}

}  // namespace ultraspeed::worker
