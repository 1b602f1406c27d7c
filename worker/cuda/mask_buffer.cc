#include "worker/cuda/mask_buffer.h"

#include <algorithm>

#include "kernels/check.h"
#include "worker/cuda/check.h"

namespace ultraspeed::worker::cuda {

MaskBuffer::MaskBuffer(int rows_max, int vocabulary, int vocabulary_used, DeviceArena& arena)
    : row_words_((vocabulary_used + 31) / 32) {
  const size_t words = static_cast<size_t>(rows_max) * static_cast<size_t>((vocabulary + 31) / 32);
  device_ = arena.Take<uint32_t>(MemoryKind::kRoundData, words);
  if (arena.counting()) return;
  void* pinned = nullptr;
  CUDA_CHECK(cudaMallocHost(&pinned, words * sizeof(uint32_t)));
  pinned_ = static_cast<uint32_t*>(pinned);
}

MaskBuffer::~MaskBuffer() {
  if (pinned_ != nullptr) CUDA_CHECK(cudaFreeHost(pinned_));
}

void MaskBuffer::Fill(int first_row, int num_rows, const TokenConstraint* constraint,
                      absl::Span<const int32_t> drafts) {
  TokenConstraint::Masks masks;
  if (constraint != nullptr) masks = constraint->AllowedTokens(drafts);
  masks.resize(static_cast<size_t>(num_rows));
  uint32_t* row = pinned_ + static_cast<size_t>(first_row) * static_cast<size_t>(row_words_);
  for (const auto& mask : masks) {
    if (mask == nullptr) {
      std::fill_n(row, row_words_, ~uint32_t{0});
    } else {
      KERNELS_CHECK(mask->words().size(), ==, static_cast<size_t>(row_words_));
      std::copy_n(mask->words().data(), row_words_, row);
    }
    row += row_words_;
  }
}

void MaskBuffer::UploadFrom(const MaskBuffer& filled, int num_rows, cudaStream_t stream) const {
  const size_t words = static_cast<size_t>(num_rows) * static_cast<size_t>(row_words_);
  CUDA_CHECK(cudaMemcpyAsync(device_, filled.pinned_, words * sizeof(uint32_t),
                             cudaMemcpyHostToDevice, stream));
}

}  // namespace ultraspeed::worker::cuda
