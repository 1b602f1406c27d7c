#include "common/grammar/number_range.h"

#include <array>
#include <charconv>
#include <cmath>
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

// The magnitude of a bound in the fewest digits that are read as it.
struct Decimal {
  std::string integer;   // no leading zeros but of "0"
  std::string fraction;  // no trailing zeros
  bool is_inclusive;
};

Decimal Zero(bool is_inclusive) { return {"0", "", is_inclusive}; }

Decimal DecimalOf(const NumberBound& bound) {
  std::array<char, 512> text;  // a double has at most 309 digits before or 324 behind the point
  const char* const end =
      std::to_chars(text.begin(), text.end(), std::abs(bound.number), std::chars_format::fixed).ptr;
  const absl::string_view all(text.data(), end - text.data());
  const size_t point = std::min(all.find('.'), all.size());
  std::string fraction(all.substr(std::min(point + 1, all.size())));
  return {std::string(all.substr(0, point)), fraction, bound.is_inclusive};
}

bool IsLess(const std::string& a, const std::string& b) {  // integers
  return std::tuple(a.size(), absl::string_view(a)) < std::tuple(b.size(), absl::string_view(b));
}

class DecimalRangeBuilder {
 public:
  DecimalRangeBuilder(GrammarBuilder* builder, RuleId rule) : builder_(builder), rule_(rule) {}

  // Behind `from`: magnitudes from low to high; null: no bound.
  void AddMagnitudes(NodeId from, const Decimal& low, const Decimal* high) {
    if (low.integer.size() > kDigitsMax) return;
    const Decimal most = {std::string(kDigitsMax, '9'), "", true};
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
  void AddFraction(NodeId from, size_t num_integer_digits, const Decimal* low,
                   const Decimal* high) {
    const size_t num_digits = kDigitsMax - num_integer_digits;  // at most
    if (MayEnd(0, low, high)) builder_->SetFinal(from);
    if (num_digits == 0) return;
    std::map<std::tuple<size_t, bool, bool>, NodeId> known;
    AddDigits(builder_->AddLiteral(from, "."), 0, num_digits, low, high, known);
  }

  // Whether a fraction may end behind `num_read` digits, which are those of low and of high if
  // these are not null.
  static bool MayEnd(size_t num_read, const Decimal* low, const Decimal* high) {
    const bool is_low = low != nullptr && num_read >= low->fraction.size();
    const bool is_below = low != nullptr && num_read < low->fraction.size();
    const bool is_high = high != nullptr && num_read >= high->fraction.size();
    return !is_below && (!is_low || low->is_inclusive) && (!is_high || high->is_inclusive);
  }

  void AddDigits(NodeId from, size_t num_read, size_t num_digits, const Decimal* low,
                 const Decimal* high, std::map<std::tuple<size_t, bool, bool>, NodeId>& known) {
    if (num_read > 0 && MayEnd(num_read, low, high)) builder_->SetFinal(from);
    if (num_read == num_digits) return;
    const auto digit_of = [num_read](const Decimal* bound, char otherwise) {
      if (bound == nullptr) return otherwise;
      return num_read < bound->fraction.size() ? bound->fraction[num_read] : '0';
    };
    const char first = digit_of(low, '0'), last = digit_of(high, '9');
    for (char digit = first; digit <= last; ++digit) {
      const Decimal* const next_low = digit == first ? low : nullptr;
      const Decimal* const next_high = digit == last ? high : nullptr;
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
    const Decimal low = min && min->number >= 0 ? DecimalOf(*min) : Zero(true);
    const std::optional<Decimal> high = max ? std::optional(DecimalOf(*max)) : std::nullopt;
    range.AddMagnitudes(entry, low, high ? &*high : nullptr);
  }
  if (!min || min->number < 0) {  // never -0
    const Decimal low = max && max->number < 0 ? DecimalOf(*max) : Zero(false);
    const std::optional<Decimal> high = min ? std::optional(DecimalOf(*min)) : std::nullopt;
    range.AddMagnitudes(builder->AddLiteral(entry, "-"), low, high ? &*high : nullptr);
  }
  return rule;
}

}  // namespace ultraspeed::grammar
