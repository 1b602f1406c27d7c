#include "worker/cuda/mask_mail.h"

#include "worker/cuda/check.h"

namespace ultraspeed::worker::cuda {

namespace resident = kernels::cuda::resident;

MaskMail::MaskMail(int vocabulary_used, uint32_t* num_masked, DeviceArena& arena)
    : buffer_(resident::kRowsMax, vocabulary_used, vocabulary_used, arena),
      device_num_masked_(num_masked) {
  if (arena.counting()) return;
  void* pinned = nullptr;
  CUDA_CHECK(cudaMallocHost(&pinned, sizeof(uint32_t)));
  pinned_num_masked_ = static_cast<uint32_t*>(pinned);
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

MaskMail::~MaskMail() {
  if (stream_ == nullptr) return;
  CUDA_CHECK(cudaStreamDestroy(stream_));
  CUDA_CHECK(cudaFreeHost(pinned_num_masked_));
}

resident::ChoiceMasks MaskMail::ForProgram() const {
  return {.rows = buffer_.device(), .row_words = buffer_.row_words()};
}

void MaskMail::Send(const MaskBuffer& filled, int num_rows, uint32_t num_masked) {
  buffer_.UploadFrom(filled, num_rows, stream_);
  SendNumber(num_masked);
}

void MaskMail::Release() {
  SendNumber(resident::kMasksOfAllRounds);
  CUDA_CHECK(cudaStreamSynchronize(stream_));
}

// The number before has arrived when there is another one: the kernel has finished a round, or
// ended.
void MaskMail::SendNumber(uint32_t num_masked) {
  *pinned_num_masked_ = num_masked;
  CUDA_CHECK(cudaMemcpyAsync(device_num_masked_, pinned_num_masked_, sizeof(uint32_t),
                             cudaMemcpyHostToDevice, stream_));
}

}  // namespace ultraspeed::worker::cuda
