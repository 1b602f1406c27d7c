// Who holds which slot and which pages of the full layers. Pure bookkeeping: the memory itself is
// the executor's.
//
// A sequence takes a slot and all pages it can ever need when it is admitted and gives them back
// when it ends, so a running sequence never waits for memory and nothing is ever preempted. Thread:
// the engine thread only.
#pragma once

#include <cstdint>
#include <vector>

namespace ultraspeed::worker {

struct KvLease {
  int slot = -1;               // -1 = holds nothing
  std::vector<int32_t> pages;  // distinct page ids, in position order
};

class KvCache {
 public:
  KvCache(int num_slots, int num_pages, int page_tokens);

  bool CanAcquire(int64_t num_tokens) const;
  // REQUIRES: CanAcquire(num_tokens).
  KvLease Acquire(int64_t num_tokens);
  // Leaves `lease` empty. REQUIRES: `lease` came from Acquire and was not released.
  void Release(KvLease& lease);

  int num_slots() const { return static_cast<int>(slot_used_.size()); }
  int slots_free() const { return static_cast<int>(free_slots_.size()); }
  int64_t tokens_used() const {
    return (num_pages() - static_cast<int64_t>(free_pages_.size())) * page_tokens_;
  }
  int64_t tokens_max() const { return num_pages() * page_tokens_; }

  // Every page and slot is free exactly once or held exactly once; aborts otherwise.
  void CheckIntegrity() const;

 private:
  int64_t num_pages() const { return static_cast<int64_t>(page_owner_.size()); }
  int64_t PagesFor(int64_t num_tokens) const {
    return (num_tokens + page_tokens_ - 1) / page_tokens_;
  }

  const int page_tokens_;            // P
  std::vector<int> free_slots_;      // taken from the back
  std::vector<int32_t> free_pages_;  // taken from the back
  std::vector<bool> slot_used_;      // [num_slots]
  std::vector<int> page_owner_;      // [num_pages] slot that holds the page, or -1
};

}  // namespace ultraspeed::worker
