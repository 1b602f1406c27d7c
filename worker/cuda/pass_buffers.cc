#include "worker/cuda/pass_buffers.h"

#include <utility>

#include "worker/cuda/check.h"

namespace ultraspeed::worker::cuda {
namespace {

// Gives each array its place after the one before; sizes alone when `base` is null.
class Layout {
 public:
  explicit Layout(uint8_t* base) : base_(base) {}
  template <typename T>
  void Place(T*& array, int64_t count) {
    used_ = (used_ + alignof(T) - 1) / alignof(T) * alignof(T);
    array = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += static_cast<size_t>(count) * sizeof(T);
  }
  size_t used() const { return used_; }

 private:
  uint8_t* base_;
  size_t used_ = 0;
};

struct InputBytes {
  size_t before_pages, total;
};

InputBytes Lay(const PassCapacity& c, uint8_t* base, PassInput& input) {
  Layout layout(base);
  layout.Place(input.position, c.sequences);
  layout.Place(input.samples, c.samples);
  layout.Place(input.draft_samples, c.drafts);
  layout.Place(input.tokens, c.tokens);
  layout.Place(input.first_row, c.sequences);
  layout.Place(input.num_rows, c.sequences);
  layout.Place(input.slot, c.sequences);
  layout.Place(input.sample_rows, c.samples);
  layout.Place(input.draft_first_row, c.sequences);
  layout.Place(input.draft_num_rows, c.sequences);
  layout.Place(input.draft_rows, c.drafts);
  layout.Place(input.given_drafts, c.drafts);
  const size_t before_pages = layout.used();
  layout.Place(input.pages, int64_t{c.sequences} * c.pages);
  return {before_pages, layout.used()};
}

size_t Lay(const PassCapacity& c, uint8_t* base, PassOutput& output) {
  Layout layout(base);
  layout.Place(output.tokens, c.samples);
  layout.Place(output.logprobs, c.samples);
  layout.Place(output.num_accepted, c.sequences);
  layout.Place(output.top_tokens, int64_t{c.samples} * kAlternativesMax);
  layout.Place(output.top_logprobs, int64_t{c.samples} * kAlternativesMax);
  return layout.used();
}

}  // namespace

PassBuffers::PassBuffers(const PassCapacity& capacity, DeviceArena& arena) : capacity_(capacity) {
  const InputBytes in = Lay(capacity, nullptr, host_input);
  pages_offset_ = in.before_pages;
  output_bytes_ = Lay(capacity, nullptr, host_output);

  constexpr MemoryKind kKind = MemoryKind::kRoundData;
  Lay(capacity, arena.Take<uint8_t>(kKind, in.total), input);
  Lay(capacity, arena.Take<uint8_t>(kKind, output_bytes_), output);
  kept = arena.Take<int32_t>(kKind, static_cast<size_t>(capacity.sequences));
  drafts = arena.Take<int32_t>(kKind, static_cast<size_t>(capacity.drafts));
  drafts_by_place = arena.Take<int32_t>(kKind, static_cast<size_t>(capacity.drafts));
  block_tokens = arena.Take<int32_t>(kKind, static_cast<size_t>(capacity.samples));
  if (arena.counting()) return;

  const auto aligned = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
  void* pinned = nullptr;
  CUDA_CHECK(
      cudaMallocHost(&pinned, aligned(in.total) + aligned(output_bytes_) +
                                  static_cast<size_t>(capacity.expert_choices) * sizeof(int32_t)));
  pinned_ = static_cast<uint8_t*>(pinned);
  Lay(capacity, pinned_, host_input);
  Lay(capacity, pinned_ + aligned(in.total), host_output);
  host_expert_ids =
      reinterpret_cast<int32_t*>(pinned_ + aligned(in.total) + aligned(output_bytes_));
}

PassBuffers::PassBuffers(PassBuffers&& other) noexcept
    : host_input(other.host_input),
      input(other.input),
      host_output(other.host_output),
      output(other.output),
      kept(other.kept),
      drafts(other.drafts),
      drafts_by_place(other.drafts_by_place),
      block_tokens(other.block_tokens),
      host_expert_ids(other.host_expert_ids),
      capacity_(other.capacity_),
      pinned_(std::exchange(other.pinned_, nullptr)),
      pages_offset_(other.pages_offset_),
      output_bytes_(other.output_bytes_) {}

PassBuffers::~PassBuffers() {
  if (pinned_ != nullptr) CUDA_CHECK(cudaFreeHost(pinned_));
}

void PassBuffers::Upload(int num_sequences, int num_pages, cudaStream_t stream) {
  const auto entries =
      static_cast<size_t>(num_sequences - 1) * static_cast<size_t>(capacity_.pages) +
      static_cast<size_t>(num_pages);
  CUDA_CHECK(cudaMemcpyAsync(input.position, host_input.position,
                             pages_offset_ + entries * sizeof(int32_t), cudaMemcpyHostToDevice,
                             stream));
}

void PassBuffers::Download(cudaStream_t stream) {
  CUDA_CHECK(cudaMemcpyAsync(host_output.tokens, output.tokens, output_bytes_,
                             cudaMemcpyDeviceToHost, stream));
}

}  // namespace ultraspeed::worker::cuda
