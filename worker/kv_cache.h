// Who holds which slot and which pages of the full layers. Pure bookkeeping: the memory itself is
// the executor's.
//
// A sequence takes a slot and all pages it can ever need when it is admitted and gives them back
// when it ends, so a running sequence never waits for memory and nothing is ever preempted. A page
// may also be cached (prefix_cache.h): it then stays when its leases end, and several sequences may
// lease it, none of which writes into it. Thread: the engine thread only.
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

  // Counts idle pages, which PrefixCache::MakeRoom frees, as if they were free.
  bool CanAcquire(int64_t num_tokens) const;
  // A slot and a share of `cached` pages, the first of the lease. REQUIRES: a slot is free.
  KvLease Begin(const std::vector<int32_t>& cached);
  // Adds free pages up to PagesFor(num_tokens). REQUIRES: at least one, and so many are free.
  void Extend(KvLease& lease, int64_t num_tokens);
  // Both, of a sequence that shares nothing.
  KvLease Acquire(int64_t num_tokens);
  // Leaves `lease` empty. REQUIRES: `lease` came from Acquire and was not released.
  void Release(KvLease& lease);

  // A leased page is cached from now on. REQUIRES: it is not yet.
  void Cache(int32_t page);
  // It is not any more, and free unless it is leased. REQUIRES: it is cached.
  void Uncache(int32_t page);

  int num_slots() const { return static_cast<int>(slot_used_.size()); }
  int slots_free() const { return static_cast<int>(free_slots_.size()); }
  int64_t pages_free() const { return static_cast<int64_t>(free_pages_.size()); }
  // Cached and not leased.
  int64_t pages_idle() const { return num_idle_; }
  int64_t PagesFor(int64_t num_tokens) const {
    return (num_tokens + page_tokens_ - 1) / page_tokens_;
  }
  int page_tokens() const { return page_tokens_; }
  // Of leased pages, shared ones counted once.
  int64_t tokens_used() const { return (num_pages() - pages_free() - pages_idle()) * page_tokens_; }
  int64_t tokens_max() const { return num_pages() * page_tokens_; }

  // Every slot is free once or held, every page is free once, cached or leased; aborts otherwise.
  void CheckIntegrity() const;

 private:
  struct Page {
    int num_leases = 0;
    bool cached = false;
  };

  int64_t num_pages() const { return static_cast<int64_t>(pages_.size()); }
  Page& page(int32_t id);

  const int page_tokens_;            // P
  std::vector<int> free_slots_;      // taken from the back
  std::vector<int32_t> free_pages_;  // taken from the back
  std::vector<bool> slot_used_;      // [num_slots]
  std::vector<Page> pages_;          // [num_pages]
  int64_t num_idle_ = 0;
};

}  // namespace ultraspeed::worker
