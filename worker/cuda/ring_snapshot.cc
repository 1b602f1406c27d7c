#include "worker/cuda/ring_snapshot.h"

#include <algorithm>

namespace ultraspeed::worker::cuda {

void AddSnapshotCopies(SnapshotCopy direction, const kernels::cuda::KvCache& cache,
                       const RingPlan& plan, int snapshot, int slot, int64_t position,
                       std::vector<kernels::cuda::Copy>& copies) {
  const int64_t end = position / cache.page_tokens;
  const int64_t begin = std::max<int64_t>(0, end - plan.window_pages);
  const auto copy = [&](void* pages, int head_dim, int64_t ring_page, int64_t kept_page,
                        int64_t count) {
    const auto bytes = [&](int64_t num_pages) {
      return kernels::cuda::KvCacheBytes(cache.format, num_pages, cache.page_tokens,
                                         cache.num_kv_heads, head_dim);
    };
    auto* const ring = static_cast<uint8_t*>(pages) + bytes(ring_page);
    auto* const kept = static_cast<uint8_t*>(pages) + bytes(kept_page);
    const bool save = direction == SnapshotCopy::kSave;
    copies.push_back({.to = save ? kept : ring, .from = save ? ring : kept, .bytes = bytes(count)});
  };
  for (int64_t page = begin; page < end;) {
    const int64_t in_ring = page % plan.ring_pages;
    const int64_t count = std::min(end - page, plan.ring_pages - in_ring);
    const int64_t ring_page = slot * plan.ring_pages + in_ring;
    const int64_t kept_page =
        plan.num_slots * plan.ring_pages + snapshot * plan.window_pages + (page - begin);
    copy(cache.k, cache.qk_head_dim, ring_page, kept_page, count);
    copy(cache.v, cache.v_head_dim, ring_page, kept_page, count);
    page += count;
  }
}

}  // namespace ultraspeed::worker::cuda
