#include "worker/prefix_cache.h"

#include <algorithm>

#include "kernels/check.h"

namespace ultraspeed::worker {

PrefixCache::PrefixCache(KvCache& kv, int num_snapshots)
    : kv_(kv),
      page_tokens_(static_cast<size_t>(kv.page_tokens())),
      snapshots_(static_cast<size_t>(num_snapshots)) {}

PrefixMatch PrefixCache::Find(absl::string_view scope, absl::Span<const int32_t> tokens) {
  PrefixMatch match;
  Node* const root = Root(scope, /*add=*/false);
  if (root == nullptr) return match;
  Node* last = root;
  Node* resumed = nullptr;  // the last with a snapshot
  std::vector<int32_t> pages;
  while (tokens.size() >= (pages.size() + 1) * page_tokens_) {
    Node* const next = Child(last, tokens.subspan(pages.size() * page_tokens_, page_tokens_));
    if (next == nullptr) break;
    last = next;
    pages.push_back(last->page);
    if (last->snapshot < 0) continue;
    resumed = last;
    match.pages = pages;
  }
  match.num_tokens = static_cast<int64_t>(match.pages.size() * page_tokens_);
  match.num_known = static_cast<int64_t>(pages.size() * page_tokens_);
  if (resumed != nullptr) {
    match.snapshot = resumed->snapshot;
    resumed->snapshot_used_at = ++now_;
  }
  Use(last);
  return match;
}

int PrefixCache::Keep(absl::string_view scope, absl::Span<const int32_t> tokens,
                      absl::Span<const int32_t> pages) {
  if (snapshots_.empty()) return -1;
  KERNELS_CHECK(tokens.size(), >=, page_tokens_);
  KERNELS_CHECK(tokens.size() % page_tokens_, ==, size_t{0});
  KERNELS_CHECK(pages.size() * page_tokens_, >=, tokens.size());
  Node* node = Root(scope, /*add=*/true);
  for (size_t i = 0; i * page_tokens_ < tokens.size(); ++i) {
    const absl::Span<const int32_t> page = tokens.subspan(i * page_tokens_, page_tokens_);
    Node* const child = Child(node, page);
    node = child != nullptr ? child : AddChild(node, page, pages[i]);
  }
  Use(node);
  if (node->snapshot >= 0) return -1;
  const auto older = [](const Node* a, const Node* b) {
    if (a == nullptr || b == nullptr) return a == nullptr && b != nullptr;  // a free one first
    return a->snapshot_used_at < b->snapshot_used_at;
  };
  const auto place = std::min_element(snapshots_.begin(), snapshots_.end(), older);
  if (*place != nullptr) (*place)->snapshot = -1;
  *place = node;
  node->snapshot = static_cast<int>(place - snapshots_.begin());
  node->snapshot_used_at = ++now_;
  return node->snapshot;
}

void PrefixCache::MakeRoom(int64_t num_pages) {
  KERNELS_CHECK(num_pages, <=, kv_.pages_free() + kv_.pages_idle());
  while (kv_.pages_free() < num_pages) Drop(by_use_.back());
}

PrefixCache::Node* PrefixCache::Child(Node* parent, absl::Span<const int32_t> tokens) {
  const auto found = nodes_.find(Key{parent, {tokens.begin(), tokens.end()}});
  return found == nodes_.end() ? nullptr : &found->second;
}

PrefixCache::Node* PrefixCache::AddChild(Node* parent, absl::Span<const int32_t> tokens,
                                         int32_t page) {
  const auto [added, is_new] = nodes_.try_emplace(Key{parent, {tokens.begin(), tokens.end()}});
  KERNELS_CHECK(is_new, ==, true);
  Node& node = added->second;
  node.key = &added->first;
  node.page = page;
  by_use_.push_front(&node);
  node.place = by_use_.begin();
  if (page >= 0) kv_.Cache(page);
  if (parent != nullptr) ++parent->num_children;
  return &node;
}

PrefixCache::Node* PrefixCache::Root(absl::string_view scope, bool add) {
  const std::vector<int32_t> name(scope.begin(), scope.end());
  Node* const root = Child(nullptr, name);
  return root != nullptr || !add ? root : AddChild(nullptr, name, /*page=*/-1);
}

void PrefixCache::Use(Node* node) {
  for (; node != nullptr; node = node->parent())
    by_use_.splice(by_use_.begin(), by_use_, node->place);
}

void PrefixCache::Drop(Node* leaf) {
  KERNELS_CHECK(leaf->num_children, ==, 0);
  if (leaf->page >= 0) kv_.Uncache(leaf->page);
  if (leaf->snapshot >= 0) snapshots_[static_cast<size_t>(leaf->snapshot)] = nullptr;
  Node* const parent = leaf->parent();
  by_use_.erase(leaf->place);
  nodes_.erase(nodes_.find(*leaf->key));
  if (parent == nullptr) return;
  --parent->num_children;
  if (parent->page < 0 && parent->num_children == 0) Drop(parent);  // a scope that has nothing
}

void PrefixCache::CheckIntegrity() const {
  KERNELS_CHECK(by_use_.size(), ==, nodes_.size());
  absl::node_hash_map<const Node*, int> num_children;
  size_t num_snapshots = 0;
  for (const auto& [key, node] : nodes_) {
    KERNELS_CHECK((node.key == &key), ==, true);
    KERNELS_CHECK((key.first == nullptr), ==, (node.page < 0));
    KERNELS_CHECK((node.num_children > 0 || node.page >= 0), ==, true);
    if (key.first != nullptr) ++num_children[key.first];
    if (node.snapshot < 0) continue;
    ++num_snapshots;
    KERNELS_CHECK((snapshots_[static_cast<size_t>(node.snapshot)] == &node), ==, true);
  }
  for (const auto& [key, node] : nodes_) {
    const auto found = num_children.find(&node);
    KERNELS_CHECK(node.num_children, ==, (found == num_children.end() ? 0 : found->second));
  }
  const auto is_free = [](const Node* node) { return node == nullptr; };
  KERNELS_CHECK(num_snapshots + static_cast<size_t>(
                                    std::count_if(snapshots_.begin(), snapshots_.end(), is_free)),
                ==, snapshots_.size());
}

}  // namespace ultraspeed::worker
