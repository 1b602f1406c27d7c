#include "common/grammar/json_strings.h"

#include <map>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/grammar/json_literal.h"
#include "common/grammar/utf8.h"

namespace ultraspeed::grammar {
namespace {

constexpr absl::string_view kEscapes = "\"\\bfnrt";  // those that are the only way

using Targets = std::array<NodeId, 256>;

Targets NoTargets() {
  Targets targets;
  targets.fill(kNoNode);
  return targets;
}

// The inside of a string: by the state of UTF-8, and behind a backslash.
struct StringNodes {
  std::array<NodeId, kNumUtf8States> text;
  NodeId escape;
};

StringNodes AddNodes(GrammarBuilder* builder, RuleId rule) {
  StringNodes nodes;
  for (NodeId& node : nodes.text) node = builder->AddNode(rule);
  nodes.escape = builder->AddNode(rule);
  return nodes;
}

// Where the bytes of a string without its quotes lead to, from a state of UTF-8.
Targets TextTargets(const StringNodes& nodes, Utf8State state) {
  Targets targets = NoTargets();
  for (int byte = 0; byte < 256; ++byte) {
    const Utf8State next = Utf8Next(state, static_cast<uint8_t>(byte));
    if (byte < 0x20 || byte == '"' || next == Utf8State::kInvalid) continue;
    targets[byte] = byte == '\\' ? nodes.escape : nodes.text[static_cast<int>(next)];
  }
  return targets;
}

Targets EscapeTargets(const StringNodes& nodes) {
  Targets targets = NoTargets();
  for (const char c : kEscapes) targets[static_cast<uint8_t>(c)] = nodes.text[0];
  return targets;
}

// `num_digits` more hexadecimal digits, then `to`.
void AddHex(GrammarBuilder* builder, RuleId rule, NodeId from, int num_digits, NodeId to) {
  for (int i = 0; i < num_digits; ++i) {
    const NodeId next = i + 1 == num_digits ? to : builder->AddNode(rule);
    builder->AddBytes(from, '0', '9', next);
    builder->AddBytes(from, 'A', 'F', next);
    builder->AddBytes(from, 'a', 'f', next);
    from = next;
  }
}

// Four digits from `from`: a code point to `to`, or a high surrogate and then an escaped low one.
void AddCodeUnit(GrammarBuilder* builder, RuleId rule, NodeId from, NodeId to) {
  const NodeId three_digits = builder->AddNode(rule);
  builder->AddBytes(from, '0', '9', three_digits);
  for (const auto& [first, last] : {std::pair('A', 'C'), {'E', 'F'}, {'a', 'c'}, {'e', 'f'}}) {
    builder->AddBytes(from, first, last, three_digits);
  }
  AddHex(builder, rule, three_digits, 3, to);

  const NodeId after_d = builder->AddNode(rule);
  for (const uint8_t d : {'D', 'd'}) builder->AddBytes(from, d, d, after_d);
  const NodeId two_digits = builder->AddNode(rule);
  builder->AddBytes(after_d, '0', '7', two_digits);
  AddHex(builder, rule, two_digits, 2, to);

  const NodeId high = builder->AddNode(rule);
  for (const auto& [first, last] : {std::pair('8', '9'), {'A', 'B'}, {'a', 'b'}}) {
    builder->AddBytes(after_d, first, last, high);
  }
  const NodeId high_end = builder->AddNode(rule);
  AddHex(builder, rule, high, 2, high_end);
  const NodeId low = builder->AddLiteral(high_end, "\\u");
  const NodeId low_d = builder->AddNode(rule);
  for (const uint8_t d : {'D', 'd'}) builder->AddBytes(low, d, d, low_d);
  const NodeId low_two_digits = builder->AddNode(rule);
  builder->AddBytes(low_d, 'C', 'F', low_two_digits);
  builder->AddBytes(low_d, 'c', 'f', low_two_digits);
  AddHex(builder, rule, low_two_digits, 2, to);
}

}  // namespace

RuleId JsonString(GrammarBuilder* builder, CountRange num_characters) {
  const RuleId rule = builder->AddRule(num_characters);
  const StringNodes nodes = AddNodes(builder, rule);
  const NodeId text = nodes.text[0];
  builder->AddBytes(builder->Entry(rule), '"', '"', text);
  builder->SetFreeText(text);
  builder->AddBytes(text, TextTargets(nodes, Utf8State::kBoundary), Guard::kCount);
  for (int i = 1; i < kNumUtf8States; ++i) {
    builder->AddBytes(nodes.text[i], TextTargets(nodes, static_cast<Utf8State>(i)));
  }
  builder->AddBytes(nodes.escape, EscapeTargets(nodes));
  builder->AddBytes(nodes.escape, '/', '/', text);
  AddCodeUnit(builder, rule, builder->AddLiteral(nodes.escape, "u"), text);
  const NodeId end = builder->AddNode(rule);
  builder->AddBytes(text, '"', '"', end, Guard::kEnough);
  builder->SetFinal(end);
  return rule;
}

// The nodes of all other strings, and beside them a tree of what the texts begin with, which is
// left for those nodes at the first byte that differs.
RuleId JsonStringExcept(GrammarBuilder* builder, absl::Span<const std::string> texts) {
  const RuleId rule = builder->AddRule();
  const StringNodes nodes = AddNodes(builder, rule);
  const NodeId end = builder->AddNode(rule);
  builder->SetFinal(end);
  builder->SetFreeText(nodes.text[0]);

  struct Place {  // inside of a string: what may follow is what may follow there in `nodes`
    NodeId node;
    bool is_escape;
    Utf8State state;
    bool may_end;
    std::map<uint8_t, size_t> next;  // index into the tree
  };
  const auto targets_of = [&](const Place& place) {
    Targets targets = place.is_escape ? EscapeTargets(nodes) : TextTargets(nodes, place.state);
    const bool at_boundary = !place.is_escape && place.state == Utf8State::kBoundary;
    if (at_boundary && place.may_end) targets['"'] = end;
    return targets;
  };
  for (int i = 0; i < kNumUtf8States; ++i) {
    const auto state = static_cast<Utf8State>(i);
    builder->AddBytes(nodes.text[i], targets_of({nodes.text[i], false, state, true, {}}));
  }
  builder->AddBytes(nodes.escape, targets_of({nodes.escape, true, Utf8State::kBoundary, true, {}}));

  const NodeId begin = builder->AddLiteral(builder->Entry(rule), "\"");
  std::vector<Place> tree = {{begin, false, Utf8State::kBoundary, true, {}}};
  for (const std::string& text : texts) {
    const std::string quoted = QuotedJson(text);
    size_t at = 0;
    for (const char c : absl::string_view(quoted).substr(1, quoted.size() - 2)) {
      const auto byte = static_cast<uint8_t>(c);
      const size_t from = at;
      const auto [found, is_new] = tree[from].next.try_emplace(byte, tree.size());
      at = found->second;
      if (!is_new) continue;
      const bool is_escape = c == '\\' && !tree[from].is_escape;
      tree.push_back(
          {builder->AddNode(rule), is_escape, Utf8Next(tree[from].state, byte), true, {}});
    }
    tree[at].may_end = false;
  }
  for (const Place& place : tree) {
    Targets targets = targets_of(place);
    for (const auto& [byte, next] : place.next) {
      if (targets[byte] != kNoNode) targets[byte] = tree[next].node;
    }
    builder->AddBytes(place.node, targets);
  }
  return rule;
}

}  // namespace ultraspeed::grammar
