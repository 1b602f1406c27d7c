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

// How characters below 0x80 are written.
struct AsciiSpelling {
  std::vector<CodePointRange> plain;  // as they are
  bool has_short_escapes = false;
};

// The spellings of sets of characters that all lead to one node.
class CharacterEdges {
 public:
  CharacterEdges(GrammarBuilder* builder, RuleId rule, NodeId to, const AsciiSpelling& ascii)
      : builder_(builder), rule_(rule), ascii_(ascii), any_continuations_{to} {}

  void Add(NodeId from, const CodePoints& characters) {
    if (ascii_.has_short_escapes) AddEscapes(from, characters);
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
    for (const CodePointRange& part : ascii_.plain) {
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
  const AsciiSpelling& ascii_;
  std::vector<NodeId> any_continuations_;  // by how many are to come
};

// Whether these are all characters that are plain in every text (utf8.h), and maybe others.
bool HoldAllPlain(const CodePoints& characters) {
  const CodePoints others = characters.Complement();
  return std::none_of(others.ranges().begin(), others.ranges().end(),
                      [](const CodePointRange& range) {
                        for (uint32_t c = range.first; c <= range.last; ++c) {
                          const bool is_surrogate = kSurrogates.first <= c && c <= kSurrogates.last;
                          if (c >= 0x80 ? !is_surrogate : IsPlain(static_cast<uint8_t>(c)))
                            return true;
                        }
                        return false;
                      });
}

bool IsFreeText(const TextAutomaton& automaton, size_t state) {
  const auto& edges = automaton.states[state].edges;
  return std::any_of(edges.begin(), edges.end(), [state](const TextAutomaton::Edge& edge) {
    return edge.target == state && HoldAllPlain(edge.characters);
  });
}

// How many plain characters may be read from each state, whatever they are, at least: one more than
// from whatever state an edge leads to, none where some plain character leads nowhere.
std::vector<uint16_t> NumFreeCharacters(const TextAutomaton& automaton) {
  constexpr uint16_t kMost = 0xFFFF;
  std::vector<std::vector<size_t>> sources(automaton.states.size());
  std::vector<uint16_t> counts(automaton.states.size(), kMost);
  std::vector<size_t> known;  // by their counts, ascending
  for (size_t i = 0; i < automaton.states.size(); ++i) {
    CodePoints characters;
    for (const TextAutomaton::Edge& edge : automaton.states[i].edges) {
      characters.Add(edge.characters);
      sources[edge.target].push_back(i);
    }
    if (HoldAllPlain(characters)) continue;
    counts[i] = 0;
    known.push_back(i);
  }
  for (size_t next = 0; next < known.size(); ++next) {
    const uint16_t count = counts[known[next]];
    if (count + 1 == kMost) break;
    for (const size_t source : sources[known[next]]) {
      if (counts[source] != kMost) continue;
      counts[source] = count + 1;
      known.push_back(source);
    }
  }
  return counts;
}

// The edges of a state, without the characters `without`.
CodePoints Without(const CodePoints& characters, const CodePoints& without) {
  CodePoints others = characters.Complement();
  others.Add(without);
  return others.Complement();
}

// Texts from `begin` to `mark`, which do not begin with one of the characters `not_first`.
void AddTexts(GrammarBuilder* builder, RuleId rule, NodeId begin, const TextAutomaton& automaton,
              const AsciiSpelling& ascii, const CodePoints& not_first, absl::string_view mark) {
  const NodeId mark_begun = builder->AddNode(rule);
  builder->SetFinal(builder->AddLiteral(mark_begun, mark.substr(1)));
  const auto mark_first = static_cast<uint8_t>(mark[0]);
  std::vector<NodeId> nodes;
  std::vector<CharacterEdges> edges_to;
  for (size_t i = 0; i < automaton.states.size(); ++i) {
    nodes.push_back(builder->AddNode(rule));
    edges_to.emplace_back(builder, rule, nodes[i], ascii);
  }
  const auto add_state = [&](NodeId node, const TextAutomaton::State& state, const auto& limit) {
    if (state.is_final) builder->AddBytes(node, mark_first, mark_first, mark_begun);
    for (const TextAutomaton::Edge& edge : state.edges)
      edges_to[edge.target].Add(node, limit(edge.characters));
  };
  const auto all = [](const CodePoints& characters) { return characters; };
  const std::vector<uint16_t> num_free = NumFreeCharacters(automaton);
  add_state(begin, automaton.states[0],
            [&](const CodePoints& characters) { return Without(characters, not_first); });
  for (size_t i = 0; i < automaton.states.size(); ++i) {
    if (IsFreeText(automaton, i)) builder->SetFreeText(nodes[i]);
    builder->SetFreeCharacters(nodes[i], num_free[i]);
    add_state(nodes[i], automaton.states[i], all);
  }
}

}  // namespace

RuleId MatchingString(GrammarBuilder* builder, const TextAutomaton& automaton) {
  static const auto* const ascii = new AsciiSpelling{
      .plain = {{0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, 0x7F}}, .has_short_escapes = true};
  const RuleId rule = builder->AddRule();
  AddTexts(builder, rule, builder->AddLiteral(builder->Entry(rule), "\""), automaton, *ascii, {},
           "\"");
  return rule;
}

RuleId MatchingTextUntil(GrammarBuilder* builder, const TextAutomaton& automaton,
                         absl::string_view mark, absl::string_view not_first) {
  const auto mark_first = static_cast<uint8_t>(mark[0]);
  const AsciiSpelling ascii = {.plain = {{0, mark_first - 1u}, {mark_first + 1u, 0x7F}}};
  CodePoints excluded;
  for (const uint32_t character : CodePointsOf(not_first)) excluded.Add({character, character});
  const RuleId rule = builder->AddRule();
  AddTexts(builder, rule, builder->Entry(rule), automaton, ascii, excluded, mark);
  return rule;
}

}  // namespace ultraspeed::grammar
