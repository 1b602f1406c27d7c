#include "common/grammar/mask_builder.h"

#include <algorithm>
#include <array>

#include "common/limits.h"

namespace ultraspeed::grammar {
namespace {

// Of a state; more than that are followed together with all other frames.
constexpr size_t kTextFramesMax = 8;

}  // namespace

void MaskBuilder::Follow(const Part& part, StateTable* states, StateId state, TokenMask* mask,
                         std::vector<Leaf>* leaves) {
  if (part.begin == part.end || state == kDeadState) return;
  const TokenTrie& trie = *part.trie;
  path_.resize(vocabulary_->token_bytes_max() + 1);
  path_[trie.node(part.begin).depth - 1] = state;
  for (uint32_t idx = part.begin; idx < part.end;) {
    const TokenTrie::Node& node = trie.node(idx);
    const StateId next = states->Next(path_[node.depth - 1], node.byte);
    if (next == kDeadState) {
      idx = node.subtree_end;
      continue;
    }
    if (node.is_plain_below && node.bytes_below <= states->num_free_characters(next)) {
      for (const int32_t token : trie.tokens_of_subtree(idx)) mask->Allow(token);
      idx = node.subtree_end;
      continue;
    }
    for (const int32_t token : trie.own_tokens(idx)) mask->Allow(token);
    if (leaves != nullptr && states->reached_caller(next)) leaves->push_back({&trie, idx});
    path_[node.depth] = next;
    ++idx;
  }
}

uint32_t MaskBuilder::EquivalentCount(const Grammar& grammar, const Frame& frame) const {
  const CountRange range = grammar.rule(grammar.node(frame.node).rule).count;
  // No token counts more than its bytes.
  const uint32_t num_bytes = vocabulary_->token_bytes_max();
  if (range.max != CountRange::kUnbounded && range.max - frame.count < num_bytes) {
    return frame.count;
  }
  if (frame.count < range.min) {
    const uint32_t far = range.min > num_bytes ? range.min - num_bytes - 1 : 0;
    return std::max(far, frame.count);
  }
  return range.max == CountRange::kUnbounded ? frame.count : range.max - num_bytes;
}

MaskBuilder::TextMask MaskBuilder::FreeTextMask(StateTable* states, StateId state) {
  TextMask text = {vocabulary_->plain_mask(), {}};
  for (const int32_t token : vocabulary_->plain_longer_than(states->num_free_characters(state))) {
    text.mask.Forbid(token);
  }
  Follow(Whole(vocabulary_->not_plain()), states, state, &text.mask, &text.leaves);
  return text;
}

MaskBuilder::TextMask MaskBuilder::OtherTextMask(StateTable* states, StateId other, StateId state,
                                                 const TextMask& free) {
  const TokenTrie& trie = vocabulary_->all();
  std::array<bool, 256> is_same;
  for (int byte = 0; byte < 256; ++byte) {
    const auto b = static_cast<uint8_t>(byte);
    is_same[byte] = states->Next(other, b) == states->Next(state, b);
  }
  std::vector<uint32_t> different;  // nodes of first bytes
  size_t num_different = 0;         // tokens
  for (uint32_t idx = 0; idx < trie.num_nodes(); idx = trie.node(idx).subtree_end) {
    if (is_same[trie.node(idx).byte]) continue;
    different.push_back(idx);
    num_different += trie.tokens_of_subtree(idx).size();
  }
  TextMask text = {TokenMask(vocabulary_->num_tokens()), {}};
  if (num_different > static_cast<size_t>(vocabulary_->num_tokens()) / 2) {
    Follow(Whole(trie), states, other, &text.mask, &text.leaves);
    return text;
  }
  text.mask = free.mask;
  for (const Leaf& leaf : free.leaves) {
    const int32_t token = leaf.trie->tokens_of_subtree(leaf.idx)[0];
    if (is_same[static_cast<uint8_t>(vocabulary_->bytes(token)[0])]) text.leaves.push_back(leaf);
  }
  for (const uint32_t idx : different) {
    for (const int32_t token : trie.tokens_of_subtree(idx)) text.mask.Forbid(token);
    Follow({&trie, idx, trie.node(idx).subtree_end}, states, other, &text.mask, &text.leaves);
  }
  return text;
}

const MaskBuilder::TextMask& MaskBuilder::TextMaskOf(StateTable* states, const Frame& frame) {
  const Grammar& grammar = states->grammar();
  const std::pair<NodeId, uint32_t> place = {frame.node, EquivalentCount(grammar, frame)};
  if (const auto found = text_masks_.find(place); found != text_masks_.end()) return *found->second;
  if (text_masks_.size() >= limits::kTextMasksMax) text_masks_.clear();

  const StateId caller = states->Intern({{kCallerNode, 0, kDeadState}});
  const StateId state = states->Intern({{frame.node, place.second, caller}});
  std::unique_ptr<TextMask> text;
  if (grammar.node(frame.node).is_free_text) {
    text = std::make_unique<TextMask>(FreeTextMask(states, state));
  } else {
    const Frame free = {grammar.rule(grammar.node(frame.node).rule).free_text, place.second,
                        caller};
    const TextMask& free_mask = TextMaskOf(states, free);
    text =
        std::make_unique<TextMask>(OtherTextMask(states, state, states->Intern({free}), free_mask));
  }
  return *(text_masks_[place] = std::move(text));
}

TokenMask MaskBuilder::Build(StateTable* states, StateId state) {
  TokenMask mask(vocabulary_->num_tokens());
  if (states->can_end(state)) mask.Allow(vocabulary_->end_mask());
  const Grammar& grammar = states->grammar();
  std::vector<Frame> texts, others;
  for (const Frame& frame : states->frames(state)) {
    const RuleId rule = grammar.node(frame.node).rule;
    const bool is_text = rule != kNoRule && grammar.rule(rule).free_text != kNoNode;
    (is_text && texts.size() < kTextFramesMax ? texts : others).push_back(frame);
  }
  Follow(Whole(vocabulary_->all()), states, states->Intern(std::move(others)), &mask, nullptr);
  for (const Frame& frame : texts) {
    const TextMask& text = TextMaskOf(states, frame);
    mask.Allow(text.mask);
    const StateId behind = states->Return(frame.callers);
    for (const Leaf& leaf : text.leaves) {
      const uint32_t end = leaf.trie->node(leaf.idx).subtree_end;
      Follow({leaf.trie, leaf.idx + 1, end}, states, behind, &mask, nullptr);
    }
  }
  return mask;
}

}  // namespace ultraspeed::grammar
