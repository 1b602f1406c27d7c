// NCCL in a build that was configured without nccl.h.
#include "worker/cuda/nccl_group.h"

namespace ultraspeed::worker::cuda {

absl::StatusOr<std::unique_ptr<NcclGroup>> NcclGroup::Create(int /*num_ranks*/) {
  return absl::FailedPreconditionError(
      "this build has no NCCL: nccl.h was not found when it was configured");
}

}  // namespace ultraspeed::worker::cuda
