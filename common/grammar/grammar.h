// What a text may be, byte by byte: rules that call each other. FromJsonSchema (json_schema.h) and
// the functions of combinators.h make grammars; Automaton (automaton.h) follows a text along one;
// Constraint (constraint.h) does so with tokens, and is what decoding uses.
//
// A rule is a small nondeterministic automaton. Its edges read a byte of a range or call another
// rule and go on behind it. A rule may count how often it went along the edges that say so, which
// is how lengths and numbers of items are bounded without writing them out.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace ultraspeed::grammar {

using RuleId = uint32_t;
using NodeId = uint32_t;

inline constexpr RuleId kNoRule = std::numeric_limits<RuleId>::max();
inline constexpr NodeId kNoNode = std::numeric_limits<NodeId>::max();
// Two nodes of every grammar, without edges: behind the whole text, and behind a rule that is
// followed without knowing who called it (mask_builder.h).
inline constexpr NodeId kEndNode = 0;
inline constexpr NodeId kCallerNode = 1;

struct CountRange {
  static constexpr uint32_t kUnbounded = std::numeric_limits<uint32_t>::max();
  uint32_t min = 0;
  uint32_t max = kUnbounded;
};

// What an edge asks of its rule's count.
enum class Guard : uint8_t {
  kNone,
  kCount,   // below max; adds one
  kMore,    // below max
  kEnough,  // at least min
};

struct ByteEdge {
  uint8_t first = 0;
  uint8_t last = 0;  // inclusive
  Guard guard = Guard::kNone;
  NodeId target = kNoNode;
};

struct CallEdge {
  RuleId rule = kNoRule;  // kNoRule: goes on at once
  Guard guard = Guard::kNone;
  bool is_tail = false;  // nothing comes behind it in the rule
  NodeId target = kNoNode;
};

// Immutable, for any number of threads.
class Grammar {
 public:
  struct Node {
    RuleId rule = kNoRule;
    uint32_t byte_edges_begin = 0;  // up to those of the next node
    uint32_t call_edges_begin = 0;
    uint16_t frames_needed = 0;        // on the stack, at least, to get from here to the rule's end
    bool is_final = false;             // the rule may end here
    bool is_free_text = false;         // plain characters (utf8.h) lead back here, counted or not
    uint16_t num_free_characters = 0;  // elsewhere: plain ones that may come, whatever they are
  };
  struct Rule {
    NodeId entry = kNoNode;
    CountRange count;
    NodeId free_text = kNoNode;  // one of its nodes, if it calls nothing: the rule is text
  };

  RuleId root() const { return root_; }
  const Rule& rule(RuleId id) const { return rules_[id]; }
  const Node& node(NodeId id) const { return nodes_[id]; }
  absl::Span<const ByteEdge> byte_edges(NodeId id) const;
  absl::Span<const CallEdge> call_edges(NodeId id) const;

  // Bytes that no edge tells apart have the same class.
  int num_byte_classes() const { return num_byte_classes_; }
  uint8_t byte_class(uint8_t byte) const { return byte_classes_[byte]; }

 private:
  friend class GrammarBuilder;
  Grammar() = default;

  RuleId root_ = kNoRule;
  std::vector<Rule> rules_;
  std::vector<Node> nodes_;  // and one behind the last
  std::vector<ByteEdge> byte_edges_;
  std::vector<CallEdge> call_edges_;
  std::array<uint8_t, 256> byte_classes_{};
  int num_byte_classes_ = 0;
};

// Thread contract: one thread at a time.
class GrammarBuilder {
 public:
  GrammarBuilder();

  RuleId AddRule(CountRange count = {});
  NodeId AddNode(RuleId rule);
  NodeId Entry(RuleId rule) const { return rules_[rule].entry; }

  void SetFinal(NodeId node) { nodes_[node].is_final = true; }
  void SetFreeText(NodeId node) { nodes_[node].is_free_text = true; }
  void SetFreeCharacters(NodeId node, uint16_t count) { nodes_[node].num_free_characters = count; }
  // Nodes of one edge are of one rule.
  void AddBytes(NodeId from, uint8_t first, uint8_t last, NodeId to, Guard guard = Guard::kNone);
  // By byte; kNoNode: no edge.
  void AddBytes(NodeId from, const std::array<NodeId, 256>& targets, Guard guard = Guard::kNone);
  void AddCall(NodeId from, RuleId rule, NodeId to, Guard guard = Guard::kNone);
  void AddEmpty(NodeId from, NodeId to, Guard guard = Guard::kNone);
  // A new node behind a call, or behind the bytes of `text`.
  NodeId AddCall(NodeId from, RuleId rule);
  NodeId AddLiteral(NodeId from, absl::string_view text);

  // The grammar of the texts of `root`. What can lead to no end is left out. INVALID_ARGUMENT,
  // beginning with `name`: more than limits::kGrammarRulesMax or kGrammarNodesMax, no text at all,
  // or none within limits::kGrammarStackDepthMax.
  absl::StatusOr<std::shared_ptr<const Grammar>> Build(RuleId root, absl::string_view name) const;

 private:
  struct Node {
    RuleId rule = kNoRule;
    bool is_final = false;
    bool is_free_text = false;
    uint16_t num_free_characters = 0;
    std::vector<ByteEdge> byte_edges;
    std::vector<CallEdge> call_edges;
  };
  struct Rule {
    NodeId entry = kNoNode;
    CountRange count;
  };
  using FramesNeeded = std::vector<uint32_t>;  // by node; kNever: no way to the rule's end

  bool IsTail(const CallEdge& edge) const;
  uint32_t CallFrames(const CallEdge& edge, const FramesNeeded& needed) const;
  FramesNeeded ComputeFramesNeeded() const;

  std::vector<Rule> rules_;
  std::vector<Node> nodes_;
};

}  // namespace ultraspeed::grammar
