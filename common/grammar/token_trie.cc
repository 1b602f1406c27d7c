#include "common/grammar/token_trie.h"

#include <algorithm>

#include "absl/strings/string_view.h"
#include "common/grammar/utf8.h"

namespace ultraspeed::grammar {

TokenTrie::TokenTrie(absl::Span<const std::string> tokens, std::vector<int32_t> ids)
    : ids_(std::move(ids)) {
  std::sort(ids_.begin(), ids_.end(), [&](int32_t a, int32_t b) {
    const int order = tokens[a].compare(tokens[b]);
    return order != 0 ? order < 0 : a < b;
  });
  std::vector<uint32_t> path;  // nodes of the token before, by depth
  const auto close = [&](size_t depth) {
    for (; path.size() > depth; path.pop_back()) {
      Node& node = nodes_[path.back()];
      node.subtree_end = static_cast<uint32_t>(nodes_.size());
      if (path.size() < 2) continue;
      uint32_t& above = nodes_[path[path.size() - 2]].bytes_below;
      above = std::max(above, node.bytes_below + 1);
    }
  };
  absl::string_view before;
  for (size_t i = 0; i < ids_.size(); ++i) {
    const absl::string_view bytes = tokens[ids_[i]];
    size_t num_shared = 0;
    while (num_shared < before.size() && bytes[num_shared] == before[num_shared]) ++num_shared;
    close(num_shared);
    for (size_t depth = num_shared; depth < bytes.size(); ++depth) {
      path.push_back(static_cast<uint32_t>(nodes_.size()));
      nodes_.push_back({.subtree_end = 0,
                        .tokens_begin = static_cast<uint32_t>(i),
                        .depth = static_cast<uint32_t>(depth + 1),
                        .bytes_below = 0,
                        .byte = static_cast<uint8_t>(bytes[depth]),
                        .is_plain_below = false});
    }
    before = bytes;
  }
  close(0);
  nodes_.push_back({.subtree_end = static_cast<uint32_t>(nodes_.size()) + 1,
                    .tokens_begin = static_cast<uint32_t>(ids_.size())});
  MarkPlain();
}

void TokenTrie::MarkPlain() {
  // Whether all that is below a node is plain behind a character that is still in `state`.
  const auto is_plain = [this](const auto& self, uint32_t idx, Utf8State state) -> bool {
    const uint32_t end = nodes_[idx].subtree_end;
    for (uint32_t child = idx + 1; child < end; child = nodes_[child].subtree_end) {
      const uint8_t byte = nodes_[child].byte;
      const Utf8State next = IsPlain(byte) ? Utf8Next(state, byte) : Utf8State::kInvalid;
      if (next == Utf8State::kInvalid) return false;
      if (next == Utf8State::kBoundary ? !nodes_[child].is_plain_below : !self(self, child, next)) {
        return false;
      }
    }
    return true;
  };
  for (uint32_t idx = num_nodes(); idx-- > 0;) {  // those below a node before it
    nodes_[idx].is_plain_below = is_plain(is_plain, idx, Utf8State::kBoundary);
  }
}

}  // namespace ultraspeed::grammar
