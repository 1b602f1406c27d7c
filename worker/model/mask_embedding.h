// Reads dflash/mask_embedding.pt: the vector that stands at the drafter's mask positions.
//
// The file is what torch.save writes for {"mask_token_id": int, "embedding": bf16[H]}: a zip
// archive with a pickle in it. A pickle is a program; this reader knows the few instructions that
// build this one value and refuses every other, so nothing is ever executed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace ultraspeed::worker {

struct MaskEmbedding {
  int64_t mask_token_id = 0;
  std::vector<kernels::bf16> embedding;  // [H]
};

// NOT_FOUND or INVALID_ARGUMENT names the file and what is wrong in it.
absl::StatusOr<MaskEmbedding> ReadMaskEmbedding(const std::string& path, int hidden);

}  // namespace ultraspeed::worker
