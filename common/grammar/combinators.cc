#include "common/grammar/combinators.h"

#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "common/check.h"
#include "common/grammar/utf8.h"

namespace ultraspeed::grammar {

RuleId Literal(GrammarBuilder* builder, absl::string_view text) {
  const RuleId rule = builder->AddRule();
  builder->SetFinal(builder->AddLiteral(builder->Entry(rule), text));
  return rule;
}

RuleId OneOf(GrammarBuilder* builder, absl::Span<const std::string> texts) {
  const RuleId rule = builder->AddRule();
  std::map<std::pair<NodeId, uint8_t>, NodeId> known;
  for (const std::string& text : texts) {
    NodeId node = builder->Entry(rule);
    for (const char c : text) {
      const auto byte = static_cast<uint8_t>(c);
      NodeId& next = known.try_emplace({node, byte}, kNoNode).first->second;
      if (next == kNoNode) {
        next = builder->AddNode(rule);
        builder->AddBytes(node, byte, byte, next);
      }
      node = next;
    }
    builder->SetFinal(node);
  }
  return rule;
}

RuleId ByteRange(GrammarBuilder* builder, uint8_t first, uint8_t last) {
  const RuleId rule = builder->AddRule();
  const NodeId end = builder->AddNode(rule);
  builder->AddBytes(builder->Entry(rule), first, last, end);
  builder->SetFinal(end);
  return rule;
}

RuleId Sequence(GrammarBuilder* builder, absl::Span<const RuleId> parts) {
  const RuleId rule = builder->AddRule();
  NodeId node = builder->Entry(rule);
  for (const RuleId part : parts) node = builder->AddCall(node, part);
  builder->SetFinal(node);
  return rule;
}

RuleId Choice(GrammarBuilder* builder, absl::Span<const RuleId> alternatives) {
  const RuleId rule = builder->AddRule();
  const NodeId end = builder->AddNode(rule);
  for (const RuleId part : alternatives) builder->AddCall(builder->Entry(rule), part, end);
  builder->SetFinal(end);
  return rule;
}

RuleId Repeat(GrammarBuilder* builder, RuleId part, CountRange count) {
  CHECK_THAT(count.min, <=, count.max);
  const RuleId rule = builder->AddRule(count);
  const NodeId loop = builder->Entry(rule);
  const NodeId end = builder->AddNode(rule);
  builder->AddCall(loop, part, loop, Guard::kCount);
  builder->AddEmpty(loop, end, Guard::kEnough);
  builder->SetFinal(end);
  return rule;
}

// Two readings of what may be the mark, side by side: as text, which counts, and as the mark. Nodes
// of the text: how much of the mark it ends with (Knuth-Morris-Pratt), and where that is nothing
// the state of UTF-8; inside of the mark the mark tells it. No edge makes the text hold the mark.
RuleId TextUntil(GrammarBuilder* builder, absl::string_view mark, CountRange num_characters,
                 absl::string_view not_first) {
  CHECK_THAT(mark.empty(), ==, false);
  for (size_t i = 1; i < mark.size(); ++i)
    CHECK_THAT(absl::EndsWith(mark, mark.substr(0, i)), ==, false);
  const RuleId rule = builder->AddRule(num_characters);
  std::array<NodeId, kNumUtf8States> between;
  for (NodeId& node : between) node = builder->AddNode(rule);
  std::vector<NodeId> read = {between[0]};
  for (size_t i = 1; i < mark.size(); ++i) read.push_back(builder->AddNode(rule));
  const NodeId mark_begun = builder->AddNode(rule);
  builder->SetFinal(builder->AddLiteral(mark_begun, mark.substr(1)));
  const auto mark_first = static_cast<uint8_t>(mark[0]);
  if (!IsPlain(mark_first)) builder->SetFreeText(between[0]);

  const auto add_edges = [&](NodeId from, Utf8State state, absl::string_view not_next,
                             auto num_read_after) {
    std::array<NodeId, 256> targets;
    targets.fill(kNoNode);
    for (int byte = 0; byte < 256; ++byte) {
      const auto c = static_cast<char>(byte);
      const Utf8State next = Utf8Next(state, static_cast<uint8_t>(byte));
      const size_t num_read = num_read_after(c);
      if (next == Utf8State::kInvalid || num_read == mark.size() ||
          absl::StrContains(not_next, absl::string_view(&c, 1)))
        continue;
      targets[byte] = num_read > 0 ? read[num_read] : between[static_cast<int>(next)];
    }
    const bool at_boundary = state == Utf8State::kBoundary;
    builder->AddBytes(from, targets, at_boundary ? Guard::kCount : Guard::kNone);
    if (at_boundary) builder->AddBytes(from, mark_first, mark_first, mark_begun, Guard::kEnough);
  };
  const auto is_first_of_mark = [&](char c) { return size_t{c == mark[0]}; };
  add_edges(builder->Entry(rule), Utf8State::kBoundary, not_first, is_first_of_mark);
  for (int i = 0; i < kNumUtf8States; ++i)
    add_edges(between[i], static_cast<Utf8State>(i), {}, is_first_of_mark);
  Utf8State state = Utf8State::kBoundary;
  for (size_t i = 1; i < mark.size(); ++i) {
    state = Utf8Next(state, static_cast<uint8_t>(mark[i - 1]));
    add_edges(read[i], state, {}, [&](char c) {
      // The longest beginning of the mark that mark[0, i) and then c end with.
      const std::string text = std::string(mark.substr(0, i)) + c;
      size_t num_read = i + 1;
      while (!absl::EndsWith(text, mark.substr(0, num_read))) --num_read;
      return num_read;
    });
  }
  return rule;
}

}  // namespace ultraspeed::grammar
