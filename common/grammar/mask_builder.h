// The mask of a state: the tokens whose bytes the automaton takes.
//
// Inside of text nearly every token is allowed, so trying all of them is what would take long.
// Three things spare it. Plain characters lead from free text back to it: tokens and parts of the
// tree that hold nothing else are allowed without being followed. Other places in the rule of a
// text differ from its free text only for tokens whose first byte leads elsewhere; behind `</para`,
// that is `m`. And what a token does within the rule of a text does not depend on who called it:
// that is found once for a place in the rule (TextMask); for a state only those tokens are left
// which go on behind the text's end, such as `",`.
//
// All other states allow few tokens, and the tree is followed as far as they do.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/grammar/automaton.h"
#include "common/grammar/token_mask.h"
#include "common/grammar/vocabulary.h"

namespace ultraspeed::grammar {

// Of one grammar. Thread contract: one thread at a time.
class MaskBuilder {
 public:
  explicit MaskBuilder(std::shared_ptr<const Vocabulary> vocabulary)
      : vocabulary_(std::move(vocabulary)) {}

  TokenMask Build(StateTable* states, StateId state);

 private:
  struct Leaf {
    const TokenTrie* trie;
    uint32_t idx;
  };
  struct TextMask {
    TokenMask mask;            // allowed whoever called
    std::vector<Leaf> leaves;  // where the text ends, with tokens that go on behind
  };

  struct Part {  // of a tree: its nodes [begin, end)
    const TokenTrie* trie;
    uint32_t begin;
    uint32_t end;
  };
  static Part Whole(const TokenTrie& trie) { return {&trie, 0, trie.num_nodes()}; }

  // Allows the tokens of a part that `state`, in front of it, allows. Adds to `leaves` (may be
  // null) where the caller's node is reached.
  void Follow(const Part& part, StateTable* states, StateId state, TokenMask* mask,
              std::vector<Leaf>* leaves);
  const TextMask& TextMaskOf(StateTable* states, const Frame& frame);
  // `state` stands in free text, `other` elsewhere in the same text.
  TextMask FreeTextMask(StateTable* states, StateId state);
  TextMask OtherTextMask(StateTable* states, StateId other, StateId state, const TextMask& free);
  // A count that allows the same tokens as the frame's, the same for as many counts as possible.
  uint32_t EquivalentCount(const Grammar& grammar, const Frame& frame) const;

  const std::shared_ptr<const Vocabulary> vocabulary_;
  // By node and count.
  absl::flat_hash_map<std::pair<NodeId, uint32_t>, std::unique_ptr<const TextMask>> text_masks_;
  std::vector<StateId> path_;  // scratch: states by depth in the tree
};

}  // namespace ultraspeed::grammar
