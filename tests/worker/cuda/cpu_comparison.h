// How far the GPU may be from the CPU: both round at the same points and add in different orders.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/ops.h"
#include "tests/worker/cpu/bundled_model.h"
#include "tests/worker/cpu/recorded_run.h"
#include "worker/cpu/cpu_executor.h"

namespace ultraspeed::worker {

// The stated bound of a logit's difference. A bf16 step of a residual moves a logit by a few
// hundredths. Where two experts of a token score equal to within rounding, the two may choose
// different ones, and that row's logits differ by more: a bounded share of rows may.
inline constexpr float kLogitBound = 0.25f;
inline constexpr float kNoiseFactor =
    1.5f;  // median bound: of the model's own noise (golden_test.cc)
inline constexpr double kSwappedShareMax = 0.1;

// Without AMX, whose products are the only ones with bits of their own: so the comparison is the
// same on every machine.
inline std::unique_ptr<ModelExecutor> LoadOnCpu() {
  kernels::SetInstructionSet(
      std::min(kernels::DetectInstructionSet(), kernels::InstructionSet::kAvx512Bf16));
  absl::StatusOr<std::unique_ptr<CpuExecutor>> executor =
      CpuExecutor::Create({.model_folder = kBundledModel, .kv_tokens = 16384});
  if (!executor.ok()) ADD_FAILURE() << executor.status();
  return executor.ok() ? *std::move(executor) : nullptr;
}

// Logits of every row of a text that begins at position 0, in slot 0, `chunk` rows at a time.
inline std::vector<float> AllLogits(ModelExecutor& executor, const std::vector<int32_t>& tokens,
                                    size_t chunk = 128) {
  const std::vector<int32_t> pages = AllPages(executor);
  const auto vocabulary = static_cast<size_t>(executor.config().vocabulary);
  std::vector<float> logits(tokens.size() * vocabulary);
  executor.ResetSlot(0);
  for (size_t begin = 0; begin < tokens.size(); begin += chunk) {
    SequenceStep step;
    step.computed = static_cast<int64_t>(begin);
    step.tokens = &tokens[begin];
    step.num_tokens = static_cast<int>(std::min(chunk, tokens.size() - begin));
    step.pages = pages.data();
    step.num_pages = static_cast<int>(pages.size());
    executor.Logits(step, &logits[begin * vocabulary]);
  }
  return logits;
}

}  // namespace ultraspeed::worker
