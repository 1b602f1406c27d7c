#include "worker/kv_cache.h"

#include "kernels/check.h"

namespace ultraspeed::worker {

KvCache::KvCache(int num_slots, int num_pages, int page_tokens)
    : page_tokens_(page_tokens), slot_used_(num_slots, false), pages_(num_pages) {
  KERNELS_CHECK(num_slots, >=, 1);
  KERNELS_CHECK(num_pages, >=, 1);
  KERNELS_CHECK(page_tokens, >=, 1);
  // Descending, so that the lowest ids are handed out first.
  for (int slot = num_slots - 1; slot >= 0; --slot) free_slots_.push_back(slot);
  for (int32_t page = num_pages - 1; page >= 0; --page) free_pages_.push_back(page);
}

KvCache::Page& KvCache::page(int32_t id) {
  KERNELS_CHECK(id, >=, 0);
  KERNELS_CHECK(id, <, num_pages());
  return pages_[static_cast<size_t>(id)];
}

bool KvCache::CanAcquire(int64_t num_tokens) const {
  return !free_slots_.empty() && PagesFor(num_tokens) <= pages_free() + pages_idle();
}

KvLease KvCache::Begin(const std::vector<int32_t>& cached) {
  KERNELS_CHECK(slots_free(), >=, 1);
  KvLease lease{.slot = free_slots_.back(), .pages = cached};
  free_slots_.pop_back();
  slot_used_[lease.slot] = true;
  for (const int32_t id : cached) {
    KERNELS_CHECK(page(id).cached, ==, true);
    if (page(id).num_leases++ == 0) --num_idle_;
  }
  return lease;
}

void KvCache::Extend(KvLease& lease, int64_t num_tokens) {
  KERNELS_CHECK(lease.slot, >=, 0);
  const int64_t num_more = PagesFor(num_tokens) - static_cast<int64_t>(lease.pages.size());
  KERNELS_CHECK(num_more, >=, 1);
  KERNELS_CHECK(num_more, <=, pages_free());
  for (int64_t i = 0; i < num_more; ++i) {
    const int32_t id = free_pages_.back();
    free_pages_.pop_back();
    page(id).num_leases = 1;
    lease.pages.push_back(id);
  }
}

KvLease KvCache::Acquire(int64_t num_tokens) {
  KvLease lease = Begin({});
  Extend(lease, num_tokens);
  return lease;
}

void KvCache::Release(KvLease& lease) {
  KERNELS_CHECK(lease.slot, >=, 0);
  KERNELS_CHECK(lease.slot, <, num_slots());
  KERNELS_CHECK(slot_used_[lease.slot], ==, true);
  for (const int32_t id : lease.pages) {
    KERNELS_CHECK(page(id).num_leases, >=, 1);
    if (--page(id).num_leases > 0) continue;
    if (page(id).cached) {
      ++num_idle_;
    } else {
      free_pages_.push_back(id);
    }
  }
  slot_used_[lease.slot] = false;
  free_slots_.push_back(lease.slot);
  lease = KvLease{};
}

void KvCache::Cache(int32_t id) {
  KERNELS_CHECK(page(id).num_leases, >=, 1);
  KERNELS_CHECK(page(id).cached, ==, false);
  page(id).cached = true;
}

void KvCache::Uncache(int32_t id) {
  KERNELS_CHECK(page(id).cached, ==, true);
  page(id).cached = false;
  if (page(id).num_leases > 0) return;
  --num_idle_;
  free_pages_.push_back(id);
}

void KvCache::CheckIntegrity() const {
  std::vector<bool> page_free(pages_.size(), false);
  for (const int32_t id : free_pages_) {
    KERNELS_CHECK(id, >=, 0);
    KERNELS_CHECK(id, <, num_pages());
    KERNELS_CHECK(page_free[id], ==, false);
    page_free[id] = true;
  }
  int64_t num_idle = 0;
  for (size_t id = 0; id < pages_.size(); ++id) {
    KERNELS_CHECK(pages_[id].num_leases, >=, 0);
    KERNELS_CHECK(pages_[id].num_leases, <=, num_slots());
    const bool leased = pages_[id].num_leases > 0;
    KERNELS_CHECK(page_free[id], ==, (!leased && !pages_[id].cached));
    if (!leased && pages_[id].cached) ++num_idle;
  }
  KERNELS_CHECK(num_idle, ==, num_idle_);
  std::vector<bool> slot_free(slot_used_.size(), false);
  for (const int slot : free_slots_) {
    KERNELS_CHECK(slot, >=, 0);
    KERNELS_CHECK(slot, <, num_slots());
    KERNELS_CHECK(slot_free[slot], ==, false);
    KERNELS_CHECK(slot_used_[slot], ==, false);
    slot_free[slot] = true;
  }
  for (int slot = 0; slot < num_slots(); ++slot)
    KERNELS_CHECK(slot_free[slot], !=, slot_used_[slot]);
}

}  // namespace ultraspeed::worker
