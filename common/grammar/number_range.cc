#include "common/grammar/number_range.h"

#include <algorithm>
#include <map>
#include <string>
#include <tuple>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "common/grammar/integer_range.h"
#include "common/limits.h"

namespace ultraspeed::grammar {
namespace {

constexpr size_t kDigitsMax = limits::kJsonBoundedDigitsMax;

DecimalBound Zero(bool is_inclusive) {
  return {.integer = "0", .fraction = "", .is_inclusive = is_inclusive};
}

bool IsLess(const std::string& a, const std::string& b) {  // integers
  return std::tuple(a.size(), absl::string_view(a)) < std::tuple(b.size(), absl::string_view(b));
}

class DecimalRangeBuilder {
 public:
  DecimalRangeBuilder(GrammarBuilder* builder, RuleId rule) : builder_(builder), rule_(rule) {}

  // Behind `from`: magnitudes from low to high; null: no bound.
  void AddMagnitudes(NodeId from, const DecimalBound& low, const DecimalBound* high) {
    if (low.integer.size() > kDigitsMax) return;
    const DecimalBound most = {.integer = std::string(kDigitsMax, '9'), .fraction = ""};
    if (high == nullptr || high->integer.size() > kDigitsMax) high = &most;
    if (low.integer == high->integer) {
      AddFraction(builder_->AddLiteral(from, low.integer), low.integer.size(), &low, high);
    } else if (IsLess(low.integer, high->integer)) {
      AddFraction(builder_->AddLiteral(from, low.integer), low.integer.size(), &low, nullptr);
      AddBetween(from, low.integer, high->integer);
      AddFraction(builder_->AddLiteral(from, high->integer), high->integer.size(), nullptr, high);
    }
  }

 private:
  // Integers between two and any fraction.
  void AddBetween(NodeId from, const std::string& low, const std::string& high) {
    int64_t first = 0, last = 0;
    (void)absl::SimpleAtoi(low, &first);  // at most kDigitsMax digits
    (void)absl::SimpleAtoi(high, &last);
    first += 1;
    last -= 1;
    int64_t least = 0, most = 9;  // of so many digits
    for (size_t num_digits = 1; num_digits <= kDigitsMax; ++num_digits) {
      const int64_t begin = std::max(first, least), end = std::min(last, most);
      if (begin <= end) {
        const RuleId integers = IntegerRange(builder_, begin, end);
        AddFraction(builder_->AddCall(from, integers), num_digits, nullptr, nullptr);
      }
      least = most + 1;
      most = most * 10 + 9;
    }
  }

  // Behind an integer of so many digits: the fractions from low to high, none included if that is
  // among them. Null: all.
  void AddFraction(NodeId from, size_t num_integer_digits, const DecimalBound* low,
                   const DecimalBound* high) {
    const size_t num_digits = kDigitsMax - num_integer_digits;  // at most
    if (FractionMayEnd(0, low, high)) builder_->SetFinal(from);
    if (num_digits == 0) return;
    std::map<std::tuple<size_t, bool, bool>, NodeId> known;
    AddDigits(builder_->AddLiteral(from, "."), 0, num_digits, low, high, known);
  }

  void AddDigits(NodeId from, size_t num_read, size_t num_digits, const DecimalBound* low,
                 const DecimalBound* high,
                 std::map<std::tuple<size_t, bool, bool>, NodeId>& known) {
    if (num_read > 0 && FractionMayEnd(num_read, low, high)) builder_->SetFinal(from);
    if (num_read == num_digits) return;
    const char first = FractionDigit(low, num_read, '0'), last = FractionDigit(high, num_read, '9');
    for (char digit = first; digit <= last; ++digit) {
      const DecimalBound* const next_low = digit == first ? low : nullptr;
      const DecimalBound* const next_high = digit == last ? high : nullptr;
      const auto [place, is_new] =
          known.try_emplace({num_read + 1, next_low != nullptr, next_high != nullptr}, kNoNode);
      if (is_new) place->second = builder_->AddNode(rule_);
      const NodeId next = place->second;
      builder_->AddBytes(from, static_cast<uint8_t>(digit), static_cast<uint8_t>(digit), next);
      if (is_new) AddDigits(next, num_read + 1, num_digits, next_low, next_high, known);
    }
  }

  GrammarBuilder* const builder_;
  const RuleId rule_;
};

}  // namespace

RuleId NumberRange(GrammarBuilder* builder, std::optional<NumberBound> min,
                   std::optional<NumberBound> max) {
  const RuleId rule = builder->AddRule();
  DecimalRangeBuilder range(builder, rule);
  const NodeId entry = builder->Entry(rule);
  if (!max || max->number >= 0) {
    const DecimalBound low = min && min->number >= 0 ? MagnitudeOf(*min) : Zero(true);
    const std::optional<DecimalBound> high = max ? std::optional(MagnitudeOf(*max)) : std::nullopt;
    range.AddMagnitudes(entry, low, high ? &*high : nullptr);
  }
  if (!min || min->number < 0) {  // never -0
    const DecimalBound low = max && max->number < 0 ? MagnitudeOf(*max) : Zero(false);
    const std::optional<DecimalBound> high = min ? std::optional(MagnitudeOf(*min)) : std::nullopt;
    range.AddMagnitudes(builder->AddLiteral(entry, "-"), low, high ? &*high : nullptr);
  }
  return rule;
}

}  // namespace ultraspeed::grammar
