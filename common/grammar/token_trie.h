// The bytes of tokens as a tree: tokens that begin alike share nodes. Nodes are numbered such that
// what is below a node comes right behind it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"

namespace ultraspeed::grammar {

// Immutable, for any number of threads.
class TokenTrie {
 public:
  struct Node {
    uint32_t subtree_end = 0;   // the first node that is not below this one
    uint32_t tokens_begin = 0;  // into tokens(): its own, then those below it
    uint32_t depth = 0;         // bytes up to here
    uint32_t bytes_below = 0;   // of the longest way down
    uint8_t byte = 0;
    bool is_plain_below = false;  // only plain characters, the last one maybe cut
  };

  // Of the `ids` among `tokens`, none of them empty.
  TokenTrie(absl::Span<const std::string> tokens, std::vector<int32_t> ids);

  uint32_t num_nodes() const { return static_cast<uint32_t>(nodes_.size()) - 1; }
  // The last node + 1 is there as well, behind all tokens.
  const Node& node(uint32_t idx) const { return nodes_[idx]; }
  absl::Span<const int32_t> own_tokens(uint32_t idx) const { return Tokens(idx, idx + 1); }
  absl::Span<const int32_t> tokens_of_subtree(uint32_t idx) const {
    return Tokens(idx, nodes_[idx].subtree_end);
  }

 private:
  absl::Span<const int32_t> Tokens(uint32_t begin, uint32_t end) const {
    const uint32_t first = nodes_[begin].tokens_begin;
    return absl::MakeConstSpan(ids_).subspan(first, nodes_[end].tokens_begin - first);
  }
  void MarkPlain();

  std::vector<Node> nodes_;
  std::vector<int32_t> ids_;  // by their bytes
};

}  // namespace ultraspeed::grammar
