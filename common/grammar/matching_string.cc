#include "common/grammar/matching_string.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/grammar/utf8.h"

namespace ultraspeed::grammar {
namespace {

// Characters and the letters that stand for them behind a backslash.
constexpr std::pair<char, char> kShortEscapes[] = {
    {'"', '"'}, {'\\', '\\'}, {'\b', 'b'}, {'\f', 'f'}, {'\n', 'n'}, {'\r', 'r'}, {'\t', 't'}};

constexpr CodePointRange kSurrogates = {0xD800, 0xDFFF};

// REQUIRES: code_point >= 0x80.
std::vector<uint8_t> Utf8(uint32_t code_point) {
  const int num_bytes = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
  std::vector<uint8_t> bytes(num_bytes);
  for (int i = num_bytes - 1; i > 0; --i, code_point >>= 6)
    bytes[i] = static_cast<uint8_t>(0x80 | (code_point & 0x3F));
  bytes[0] = static_cast<uint8_t>(0xF00 >> num_bytes | code_point);
  return bytes;
}

// The spellings of sets of characters that all lead to one node.
class CharacterEdges {
 public:
  CharacterEdges(GrammarBuilder* builder, RuleId rule, NodeId to)
      : builder_(builder), rule_(rule), any_continuations_{to} {}

  void Add(NodeId from, const CodePoints& characters) {
    AddEscapes(from, characters);
    for (const CodePointRange& range : characters.ranges()) {
      AddAscii(from, range);
      // In the ranges of code points that have equally many bytes.
      for (const CodePointRange& part : {CodePointRange{0x80, 0x7FF},
                                         {0x800, kSurrogates.first - 1},
                                         {kSurrogates.last + 1, 0xFFFF},
                                         {0x10000, kCodePointMax}}) {
        const uint32_t first = std::max(range.first, part.first);
        const uint32_t last = std::min(range.last, part.last);
        if (first <= last) AddBytes(from, Utf8(first), Utf8(last));
      }
    }
  }

 private:
  NodeId to() const { return any_continuations_[0]; }

  void AddEscapes(NodeId from, const CodePoints& characters) {
    NodeId escape = kNoNode;
    for (const auto& [character, letter] : kShortEscapes) {
      if (!characters.Contains(static_cast<uint8_t>(character))) continue;
      if (escape == kNoNode) escape = builder_->AddLiteral(from, "\\");
      builder_->AddBytes(escape, static_cast<uint8_t>(letter), static_cast<uint8_t>(letter), to());
    }
  }
  void AddAscii(NodeId from, CodePointRange range) {
    for (const CodePointRange& part :
         {CodePointRange{0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, 0x7F}}) {
      const uint32_t first = std::max(range.first, part.first);
      const uint32_t last = std::min(range.last, part.last);
      if (first > last) continue;
      builder_->AddBytes(from, static_cast<uint8_t>(first), static_cast<uint8_t>(last), to());
    }
  }

  // The characters from one to another of as many bytes, as far as they are left to read.
  void AddBytes(NodeId from, absl::Span<const uint8_t> first, absl::Span<const uint8_t> last) {
    if (first.size() == 1) {
      builder_->AddBytes(from, first[0], last[0], to());
      return;
    }
    const auto first_rest = first.subspan(1), last_rest = last.subspan(1);
    const std::vector<uint8_t> least(first_rest.size(), 0x80), most(first_rest.size(), 0xBF);
    const bool from_least = first_rest == absl::MakeConstSpan(least);
    const bool to_most = last_rest == absl::MakeConstSpan(most);
    if (from_least && to_most) {
      builder_->AddBytes(from, first[0], last[0], AnyContinuation(first_rest.size()));
    } else if (first[0] == last[0]) {
      const NodeId node = builder_->AddNode(rule_);
      builder_->AddBytes(from, first[0], first[0], node);
      AddBytes(node, first_rest, last_rest);
    } else {
      const auto next = [&](uint8_t byte, absl::Span<const uint8_t> begin,
                            absl::Span<const uint8_t> end) {
        const NodeId node = builder_->AddNode(rule_);
        builder_->AddBytes(from, byte, byte, node);
        AddBytes(node, begin, end);
      };
      const int between_first = from_least ? first[0] : first[0] + 1;
      const int between_last = to_most ? last[0] : last[0] - 1;
      if (!from_least) next(first[0], first_rest, most);
      if (between_first <= between_last) {
        builder_->AddBytes(from, static_cast<uint8_t>(between_first),
                           static_cast<uint8_t>(between_last), AnyContinuation(first_rest.size()));
      }
      if (!to_most) next(last[0], least, last_rest);
    }
  }

  // In front of so many bytes that go on with a character, whichever.
  NodeId AnyContinuation(size_t num_bytes) {
    while (any_continuations_.size() <= num_bytes) {
      const NodeId node = builder_->AddNode(rule_);
      builder_->AddBytes(node, 0x80, 0xBF, any_continuations_.back());
      any_continuations_.push_back(node);
    }
    return any_continuations_[num_bytes];
  }

  GrammarBuilder* const builder_;
  const RuleId rule_;
  std::vector<NodeId> any_continuations_;  // by how many are to come
};

// Whether all characters that are plain in every text (utf8.h) lead from the state back to it.
bool IsFreeText(const TextAutomaton& automaton, size_t state) {
  for (const TextAutomaton::Edge& edge : automaton.states[state].edges) {
    if (edge.target == state) {
      const CodePoints others = edge.characters.Complement();
      return std::none_of(others.ranges().begin(), others.ranges().end(),
                          [](const CodePointRange& range) {
                            for (uint32_t c = range.first; c <= range.last; ++c) {
                              if (c >= 0x80 ? c < kSurrogates.first || c > kSurrogates.last
                                            : IsPlain(static_cast<uint8_t>(c))) {
                                return true;
                              }
                            }
                            return false;
                          });
    }
  }
  return false;
}

}  // namespace

RuleId MatchingString(GrammarBuilder* builder, const TextAutomaton& automaton) {
  const RuleId rule = builder->AddRule();
  const NodeId end = builder->AddNode(rule);
  builder->SetFinal(end);
  std::vector<NodeId> nodes;
  std::vector<CharacterEdges> edges_to;
  for (size_t i = 0; i < automaton.states.size(); ++i) {
    nodes.push_back(builder->AddNode(rule));
    edges_to.emplace_back(builder, rule, nodes[i]);
  }
  builder->AddBytes(builder->Entry(rule), '"', '"', nodes[0]);
  for (size_t i = 0; i < automaton.states.size(); ++i) {
    const TextAutomaton::State& state = automaton.states[i];
    if (state.is_final) builder->AddBytes(nodes[i], '"', '"', end);
    if (IsFreeText(automaton, i)) builder->SetFreeText(nodes[i]);
    for (const TextAutomaton::Edge& edge : state.edges)
      edges_to[edge.target].Add(nodes[i], edge.characters);
  }
  return rule;
}

}  // namespace ultraspeed::grammar
