#include "common/grammar/mask_builder.h"

#include "common/limits.h"

namespace ultraspeed::grammar {

void MaskBuilder::Follow(const TokenTrie& trie, uint32_t begin, uint32_t end, StateTable* states,
                         StateId state, TokenMask* mask, std::vector<uint32_t>* leaves) {
  if (begin == end || state == kDeadState) return;
  path_.resize(vocabulary_->token_bytes_max() + 1);
  path_[trie.node(begin).depth - 1] = state;
  for (uint32_t idx = begin; idx < end;) {
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
    if (leaves != nullptr && states->reached_caller(next)) leaves->push_back(idx);
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
    return std::max(far, frame.count) == far ? far : frame.count;
  }
  return range.max == CountRange::kUnbounded ? frame.count : range.max - num_bytes;
}

const MaskBuilder::TextMask& MaskBuilder::TextMaskOf(StateTable* states, const Frame& frame) {
  const uint32_t count = EquivalentCount(states->grammar(), frame);
  const std::pair<NodeId, uint32_t> place = {frame.node, count};
  if (const auto found = text_masks_.find(place); found != text_masks_.end()) return found->second;
  if (text_masks_.size() >= limits::kTextMasksMax) text_masks_.clear();

  const StateId caller = states->Intern({{kCallerNode, 0, kDeadState}});
  const StateId state = states->Intern({{frame.node, count, caller}});
  const bool takes_plain = states->num_free_characters(state) >= vocabulary_->token_bytes_max();
  TextMask text = {TokenMask(vocabulary_->num_tokens()),
                   takes_plain ? &vocabulary_->not_plain() : &vocabulary_->all(),
                   {}};
  if (takes_plain) text.mask.Allow(vocabulary_->plain_mask());
  Follow(*text.trie, 0, text.trie->num_nodes(), states, state, &text.mask, &text.leaves);
  return text_masks_.emplace(place, std::move(text)).first->second;
}

TokenMask MaskBuilder::Build(StateTable* states, StateId state) {
  TokenMask mask(vocabulary_->num_tokens());
  if (states->can_end(state)) mask.Allow(vocabulary_->end_mask());
  const Grammar& grammar = states->grammar();
  std::vector<Frame> texts, others;
  for (const Frame& frame : states->frames(state)) {
    const RuleId rule = grammar.node(frame.node).rule;
    const bool is_text = rule != kNoRule && grammar.rule(rule).is_text;
    (is_text ? texts : others).push_back(frame);
  }
  const TokenTrie& all = vocabulary_->all();
  Follow(all, 0, all.num_nodes(), states, states->Intern(std::move(others)), &mask, nullptr);
  for (const Frame& frame : texts) {
    const TextMask& text = TextMaskOf(states, frame);
    mask.Allow(text.mask);
    const StateId behind = states->Return(frame.callers);
    for (const uint32_t leaf : text.leaves) {
      Follow(*text.trie, leaf + 1, text.trie->node(leaf).subtree_end, states, behind, &mask,
             nullptr);
    }
  }
  return mask;
}

}  // namespace ultraspeed::grammar
