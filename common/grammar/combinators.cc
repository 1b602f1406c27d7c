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

RuleId Optional(GrammarBuilder* builder, RuleId part) {
  const RuleId rule = builder->AddRule();
  const NodeId end = builder->AddCall(builder->Entry(rule), part);
  builder->AddEmpty(builder->Entry(rule), end);
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

// Nodes: how much of the mark has been read (Knuth-Morris-Pratt); where that is nothing, also the
// state of UTF-8. Inside of the mark the mark tells it.
RuleId TextUntil(GrammarBuilder* builder, absl::string_view mark) {
  CHECK_THAT(mark.empty(), ==, false);
  const RuleId rule = builder->AddRule();
  std::array<NodeId, kNumUtf8States> between;
  between[0] = builder->Entry(rule);
  for (int i = 1; i < kNumUtf8States; ++i) between[i] = builder->AddNode(rule);
  std::vector<NodeId> read = {between[0]};
  for (size_t i = 1; i <= mark.size(); ++i) read.push_back(builder->AddNode(rule));
  builder->SetFinal(read.back());
  if (!IsPlain(static_cast<uint8_t>(mark[0]))) builder->SetFreeText(between[0]);

  const auto add_edges = [&](NodeId from, Utf8State state, auto num_read_after) {
    std::array<NodeId, 256> targets;
    for (int byte = 0; byte < 256; ++byte) {
      const Utf8State next = Utf8Next(state, static_cast<uint8_t>(byte));
      const size_t num_read = num_read_after(static_cast<char>(byte));
      targets[byte] = next == Utf8State::kInvalid ? kNoNode
                      : num_read > 0              ? read[num_read]
                                                  : between[static_cast<int>(next)];
    }
    builder->AddBytes(from, targets);
  };
  for (int i = 0; i < kNumUtf8States; ++i) {
    const auto state = static_cast<Utf8State>(i);
    add_edges(between[i], state, [&](char c) { return size_t{c == mark[0]}; });
  }
  Utf8State state = Utf8State::kBoundary;
  for (size_t i = 1; i < mark.size(); ++i) {
    state = Utf8Next(state, static_cast<uint8_t>(mark[i - 1]));
    add_edges(read[i], state, [&](char c) {
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
