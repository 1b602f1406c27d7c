#include "worker/model_executor.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "kernels/check.h"

namespace ultraspeed::worker {
namespace {

constexpr int kSequencesMax = 1024;
constexpr int kBatchTokensMax = 16384;
constexpr int64_t kKvTokensMax = int64_t{1} << 26;
constexpr int kThreadsMax = 1024;

absl::Status CheckOption(const char* name, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": is ", value, "; must be from ", min, " to ", max));
}

}  // namespace

absl::Status ValidateOptions(const ExecutorOptions& options) {
  if (absl::Status s = CheckOption("max_sequences", options.max_sequences, 1, kSequencesMax);
      !s.ok())
    return s;
  if (absl::Status s = CheckOption("max_batch_tokens", options.max_batch_tokens, kDraftBlockMax,
                                   kBatchTokensMax);
      !s.ok())
    return s;
  if (absl::Status s = CheckOption("kv_tokens", options.kv_tokens, 1, kKvTokensMax); !s.ok())
    return s;
  if (absl::Status s =
          CheckOption("num_snapshots", options.num_snapshots, 0, limits::kPrefixSnapshotsMax);
      !s.ok())
    return s;
  return CheckOption("num_threads", options.num_threads, 0, kThreadsMax);
}

void CheckRound(const Round& round, const Executor& executor) {
  KERNELS_CHECK(static_cast<int>(round.steps.size()), <=, executor.max_sequences());
  int num_rows = 0;
  for (const SequenceStep& step : round.steps) {
    KERNELS_CHECK(step.slot, >=, 0);
    KERNELS_CHECK(step.slot, <, executor.max_sequences());
    KERNELS_CHECK(step.num_tokens, >=, 1);
    KERNELS_CHECK(step.block, >=, 1);
    KERNELS_CHECK(step.block, <=, executor.config().draft_block());
    KERNELS_CHECK(step.num_drafts, >=, 0);
    KERNELS_CHECK(step.num_drafts, <=, executor.given_drafts_max());
    if (step.block > 1 || step.brings_drafts()) {
      KERNELS_CHECK(step.num_tokens, ==, 1);
      KERNELS_CHECK(step.sample, ==, true);
    }
    const int64_t end = step.computed + std::max(step.rows(), step.num_tokens + step.block - 1);
    KERNELS_CHECK(end, <=, int64_t{step.num_pages} * executor.page_tokens());
    KERNELS_CHECK(step.num_pages, <=, executor.num_pages());
    num_rows += step.rows();
  }
  KERNELS_CHECK(num_rows, <=, executor.max_batch_tokens());
}

void CheckSnapshot(int snapshot, int slot, int64_t position, const Executor& executor) {
  KERNELS_CHECK(snapshot, >=, 0);
  KERNELS_CHECK(snapshot, <, executor.num_snapshots());
  KERNELS_CHECK(slot, >=, 0);
  KERNELS_CHECK(slot, <, executor.max_sequences());
  KERNELS_CHECK(position, >=, int64_t{1});
  KERNELS_CHECK(position % executor.page_tokens(), ==, int64_t{0});
}

}  // namespace ultraspeed::worker
