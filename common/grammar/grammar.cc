#include "common/grammar/grammar.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/limits.h"

namespace ultraspeed::grammar {
namespace {

constexpr uint32_t kNever = std::numeric_limits<uint32_t>::max();

}  // namespace

absl::Span<const ByteEdge> Grammar::byte_edges(NodeId id) const {
  const uint32_t begin = nodes_[id].byte_edges_begin;
  return absl::MakeConstSpan(byte_edges_).subspan(begin, nodes_[id + 1].byte_edges_begin - begin);
}

absl::Span<const CallEdge> Grammar::call_edges(NodeId id) const {
  const uint32_t begin = nodes_[id].call_edges_begin;
  return absl::MakeConstSpan(call_edges_).subspan(begin, nodes_[id + 1].call_edges_begin - begin);
}

GrammarBuilder::GrammarBuilder() {
  nodes_.resize(2);  // kEndNode, kCallerNode
  nodes_[kEndNode].is_final = nodes_[kCallerNode].is_final = true;
}

RuleId GrammarBuilder::AddRule(CountRange count) {
  const auto rule = static_cast<RuleId>(rules_.size());
  rules_.push_back({kNoNode, count});
  rules_.back().entry = AddNode(rule);
  return rule;
}

NodeId GrammarBuilder::AddNode(RuleId rule) {
  nodes_.emplace_back().rule = rule;
  return static_cast<NodeId>(nodes_.size() - 1);
}

void GrammarBuilder::AddBytes(NodeId from, uint8_t first, uint8_t last, NodeId to, Guard guard) {
  nodes_[from].byte_edges.push_back({first, last, guard, to});
}

void GrammarBuilder::AddBytes(NodeId from, const std::array<NodeId, 256>& targets, Guard guard) {
  for (int first = 0, next; first < 256; first = next) {
    next = first + 1;
    while (next < 256 && targets[next] == targets[first]) ++next;
    if (targets[first] == kNoNode) continue;
    AddBytes(from, static_cast<uint8_t>(first), static_cast<uint8_t>(next - 1), targets[first],
             guard);
  }
}

void GrammarBuilder::AddCall(NodeId from, RuleId rule, NodeId to, Guard guard) {
  nodes_[from].call_edges.push_back({rule, guard, false, to});
}

void GrammarBuilder::AddEmpty(NodeId from, NodeId to, Guard guard) {
  AddCall(from, kNoRule, to, guard);
}

NodeId GrammarBuilder::AddCall(NodeId from, RuleId rule) {
  const NodeId to = AddNode(nodes_[from].rule);
  AddCall(from, rule, to);
  return to;
}

NodeId GrammarBuilder::AddLiteral(NodeId from, absl::string_view text) {
  for (const char c : text) {
    const NodeId to = AddNode(nodes_[from].rule);
    AddBytes(from, static_cast<uint8_t>(c), static_cast<uint8_t>(c), to);
    from = to;
  }
  return from;
}

bool GrammarBuilder::IsTail(const CallEdge& edge) const {
  const Node& target = nodes_[edge.target];
  return target.is_final && target.byte_edges.empty() && target.call_edges.empty();
}

uint32_t GrammarBuilder::CallFrames(const CallEdge& edge, const FramesNeeded& needed) const {
  if (edge.rule == kNoRule) return 0;
  const uint32_t callee = needed[Entry(edge.rule)];
  return callee == kNever || IsTail(edge) ? callee : callee + 1;
}

// The least solution, from above. Most rules are made before those that they call, some after:
// every other round goes forwards.
GrammarBuilder::FramesNeeded GrammarBuilder::ComputeFramesNeeded() const {
  FramesNeeded needed(nodes_.size(), kNever);
  // What counting up to a rule's min takes: along its cheapest edge that counts.
  std::vector<uint32_t> counting(rules_.size());
  bool backwards = false;
  for (bool changed = true; changed;) {
    changed = false;
    backwards = !backwards;
    for (size_t rule = 0; rule < rules_.size(); ++rule) {
      counting[rule] = rules_[rule].count.min == 0 ? 0 : kNever;
    }
    for (const Node& node : nodes_) {
      for (const ByteEdge& edge : node.byte_edges) {
        if (edge.guard == Guard::kCount) counting[node.rule] = 0;
      }
      for (const CallEdge& edge : node.call_edges) {
        if (edge.guard != Guard::kCount) continue;
        counting[node.rule] = std::min(counting[node.rule], CallFrames(edge, needed));
      }
    }
    for (size_t step = 0; step < nodes_.size(); ++step) {
      const size_t i = backwards ? nodes_.size() - 1 - step : step;
      const Node& node = nodes_[i];
      uint32_t least = node.is_final ? 0 : kNever;
      const auto consider = [&](Guard guard, uint32_t call, NodeId target) {
        const uint32_t count = guard == Guard::kEnough ? counting[node.rule] : 0;
        least = std::min(least, std::max({call, count, needed[target]}));
      };
      for (const ByteEdge& edge : node.byte_edges) consider(edge.guard, 0, edge.target);
      for (const CallEdge& edge : node.call_edges) {
        consider(edge.guard, CallFrames(edge, needed), edge.target);
      }
      if (least < needed[i]) {
        needed[i] = least;
        changed = true;
      }
    }
  }
  return needed;
}

absl::StatusOr<std::shared_ptr<const Grammar>> GrammarBuilder::Build(RuleId root,
                                                                     absl::string_view name) const {
  if (rules_.size() > limits::kGrammarRulesMax || nodes_.size() > limits::kGrammarNodesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": needs ", rules_.size(), " rules and ", nodes_.size(), " places in them; at most ",
        limits::kGrammarRulesMax, " and ", limits::kGrammarNodesMax, " are supported"));
  }
  const FramesNeeded needed = ComputeFramesNeeded();
  if (needed[Entry(root)] == kNever) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": nothing satisfies it"));
  }
  if (needed[Entry(root)] > limits::kGrammarStackDepthMax) {
    return absl::InvalidArgumentError(absl::StrCat(name,
                                                   ": asks for text that is nested deeper than ",
                                                   limits::kGrammarStackDepthMax, " levels"));
  }

  std::shared_ptr<Grammar> grammar(new Grammar);
  grammar->root_ = root;
  for (const Rule& rule : rules_) grammar->rules_.push_back({rule.entry, rule.count, kNoNode});
  std::vector<bool> calls(rules_.size());
  std::array<bool, 257> begins_class{};
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    grammar->nodes_.push_back({node.rule, static_cast<uint32_t>(grammar->byte_edges_.size()),
                               static_cast<uint32_t>(grammar->call_edges_.size()),
                               static_cast<uint16_t>(std::min<uint32_t>(needed[i], UINT16_MAX)),
                               node.is_final, node.is_free_text, node.num_free_characters});
    for (const ByteEdge& edge : node.byte_edges) {
      if (needed[edge.target] == kNever) continue;
      grammar->byte_edges_.push_back(edge);
      begins_class[edge.first] = begins_class[edge.last + 1] = true;
    }
    for (CallEdge edge : node.call_edges) {
      if (std::max(CallFrames(edge, needed), needed[edge.target]) == kNever) continue;
      edge.is_tail = IsTail(edge);
      calls[node.rule] = calls[node.rule] || edge.rule != kNoRule;
      grammar->call_edges_.push_back(edge);
    }
    if (node.is_free_text) grammar->rules_[node.rule].free_text = static_cast<NodeId>(i);
  }
  for (size_t rule = 0; rule < rules_.size(); ++rule) {
    if (calls[rule]) grammar->rules_[rule].free_text = kNoNode;
  }
  grammar->nodes_.push_back({kNoRule, static_cast<uint32_t>(grammar->byte_edges_.size()),
                             static_cast<uint32_t>(grammar->call_edges_.size()), 0, false, false,
                             0});
  int byte_class = 0;
  for (int byte = 0; byte < 256; ++byte) {
    if (byte > 0 && begins_class[byte]) ++byte_class;
    grammar->byte_classes_[byte] = static_cast<uint8_t>(byte_class);
  }
  grammar->num_byte_classes_ = byte_class + 1;
  return grammar;
}

}  // namespace ultraspeed::grammar
