#include "worker/kv_cache.h"

#include "kernels/check.h"

namespace ultraspeed::worker {

KvCache::KvCache(int num_slots, int num_pages, int page_tokens)
    : page_tokens_(page_tokens), slot_used_(num_slots, false), page_owner_(num_pages, -1) {
  KERNELS_CHECK(num_slots, >=, 1);
  KERNELS_CHECK(num_pages, >=, 1);
  KERNELS_CHECK(page_tokens, >=, 1);
  // Descending, so that the lowest ids are handed out first.
  for (int slot = num_slots - 1; slot >= 0; --slot) free_slots_.push_back(slot);
  for (int32_t page = num_pages - 1; page >= 0; --page) free_pages_.push_back(page);
}

bool KvCache::CanAcquire(int64_t num_tokens) const {
  return !free_slots_.empty() && PagesFor(num_tokens) <= static_cast<int64_t>(free_pages_.size());
}

KvLease KvCache::Acquire(int64_t num_tokens) {
  KERNELS_CHECK(num_tokens, >=, 1);
  KERNELS_CHECK(CanAcquire(num_tokens), ==, true);
  KvLease lease;
  lease.slot = free_slots_.back();
  free_slots_.pop_back();
  slot_used_[lease.slot] = true;
  for (int64_t i = 0; i < PagesFor(num_tokens); ++i) {
    const int32_t page = free_pages_.back();
    free_pages_.pop_back();
    page_owner_[page] = lease.slot;
    lease.pages.push_back(page);
  }
  return lease;
}

void KvCache::Release(KvLease& lease) {
  KERNELS_CHECK(lease.slot, >=, 0);
  KERNELS_CHECK(lease.slot, <, num_slots());
  KERNELS_CHECK(slot_used_[lease.slot], ==, true);
  for (const int32_t page : lease.pages) {
    KERNELS_CHECK(page_owner_[page], ==, lease.slot);
    page_owner_[page] = -1;
    free_pages_.push_back(page);
  }
  slot_used_[lease.slot] = false;
  free_slots_.push_back(lease.slot);
  lease = KvLease{};
}

void KvCache::CheckIntegrity() const {
  std::vector<bool> page_free(page_owner_.size(), false);
  for (const int32_t page : free_pages_) {
    KERNELS_CHECK(page, >=, 0);
    KERNELS_CHECK(page, <, num_pages());
    KERNELS_CHECK(page_free[page], ==, false);
    KERNELS_CHECK(page_owner_[page], ==, -1);
    page_free[page] = true;
  }
  for (int64_t page = 0; page < num_pages(); ++page) {
    const int owner = page_owner_[page];
    KERNELS_CHECK(page_free[page], ==, (owner == -1));
    KERNELS_CHECK(owner, <, num_slots());
    if (owner != -1) KERNELS_CHECK(slot_used_[owner], ==, true);
  }
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
