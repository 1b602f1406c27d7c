// Which beginnings of past sequences are still in memory, so that a request that begins alike does
// not compute them again. Pure bookkeeping, as kv_cache.h.
//
// A tree: a node is one page of tokens after its parent's, under a root for each scope, so what one
// scope has computed tells nothing to another. Nodes own a page of the full layers. A sequence can
// go on from a node only if a snapshot (executor.h) has what its other layers, which see a window,
// still hold there; snapshots are few, and taken where going on is likely: at the end of a prompt,
// at the end of a sequence, and where two sequences are first seen to part. Least recently used go
// first; whoever uses a node uses its ancestors, so the oldest node is always a leaf. Thread: the
// engine thread only.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/node_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "worker/kv_cache.h"

namespace ultraspeed::worker {

struct PrefixMatch {
  int snapshot = -1;           // with num_tokens > 0
  int64_t num_tokens = 0;      // that a sequence need not compute: a multiple of P
  std::vector<int32_t> pages;  // [num_tokens / P]
  int64_t num_known = 0;       // >= num_tokens: so many were computed once, snapshot or not
};

class PrefixCache {
 public:
  // `kv` is not owned. Without snapshots nothing is kept.
  PrefixCache(KvCache& kv, int num_snapshots);

  // The longest beginning of `tokens`.
  PrefixMatch Find(absl::string_view scope, absl::Span<const int32_t> tokens);

  // Keeps the pages of `tokens`, as long as nobody needs their memory. Returns the snapshot that is
  // to be saved at their end, or -1 if there is one already. REQUIRES: whole pages of tokens, at
  // least one; `pages`, leased, has a page for each.
  int Keep(absl::string_view scope, absl::Span<const int32_t> tokens,
           absl::Span<const int32_t> pages);

  // Drops what was used least recently until `num_pages` are free. REQUIRES: so many are free or
  // idle.
  void MakeRoom(int64_t num_pages);

  // Aborts unless tree, pages and snapshots agree.
  void CheckIntegrity() const;

 private:
  struct Node;
  // Tokens of the page; of a root, the bytes of its scope.
  using Key = std::pair<Node*, std::vector<int32_t>>;
  struct Node {
    const Key* key = nullptr;
    int32_t page = -1;  // -1 = a root
    int snapshot = -1;
    int num_children = 0;
    int64_t snapshot_used_at = 0;
    std::list<Node*>::iterator place;  // in by_use_
    Node* parent() const { return key->first; }
  };

  Node* Child(Node* parent, absl::Span<const int32_t> tokens);  // null if there is none
  Node* AddChild(Node* parent, absl::Span<const int32_t> tokens, int32_t page);
  Node* Root(absl::string_view scope, bool add);
  void Use(Node* node);  // and its ancestors
  void Drop(Node* leaf);

  KvCache& kv_;
  const size_t page_tokens_;              // P
  absl::node_hash_map<Key, Node> nodes_;  // addresses are stable
  std::list<Node*> by_use_;               // the most recently used first
  std::vector<Node*> snapshots_;          // [num_snapshots] whose it is; null = free
  int64_t now_ = 0;                       // counts uses of snapshots
};

}  // namespace ultraspeed::worker
