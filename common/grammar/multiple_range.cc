#include "common/grammar/multiple_range.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/limits.h"

namespace ultraspeed::grammar {
namespace {

constexpr uint64_t kBase = 10;
constexpr int kStepsOfNode = 10;  // it has an edge for each digit

// A number is followed digit by digit: the remainder of what has been read, by the step's units,
// and whether it still is what a bound begins with. Of a remainder counts only what the digits that
// may still come cannot make good: behind "3", hundreds are multiples of 25 whatever follows.
class MultipleBuilder {
 public:
  MultipleBuilder(GrammarBuilder* builder, RuleId rule, const MultipleSpec& spec, int* steps_left)
      : builder_(builder), rule_(rule), spec_(spec), steps_left_(steps_left) {
    moduli_.push_back(spec.step.units);
  }

  // Behind `from`: magnitudes from low to high; null: no bound.
  void AddMagnitudes(NodeId from, const DecimalBound& low, const DecimalBound* high) {
    auto num_digits_max = static_cast<size_t>(spec_.integer_digits_max);
    if (high != nullptr) num_digits_max = std::min(num_digits_max, high->integer.size());
    for (size_t num_digits = low.integer.size(); num_digits <= num_digits_max; ++num_digits) {
      // Beside a bound that has as many digits; no leading zeros.
      AddDigits(from, num_digits - 1, 0, num_digits == low.integer.size() ? &low : nullptr,
                high != nullptr && num_digits == high->integer.size() ? high : nullptr,
                num_digits > 1 ? '1' : '0');
    }
  }

 private:
  struct Place {
    bool is_fraction;
    size_t num_left;  // digits that may still come: of the integer, or of the fraction
    uint64_t remainder;
    const DecimalBound *low, *high;  // that begin with what has been read, or null
  };

  // Behind `from`: a digit of the integer, which `num_left` others follow, and the rest.
  void AddDigits(NodeId from, size_t num_left, uint64_t remainder, const DecimalBound* low,
                 const DecimalBound* high, char least) {
    const auto digit_of = [&](const DecimalBound* bound, char otherwise) {
      return bound == nullptr ? otherwise : bound->integer[bound->integer.size() - 1 - num_left];
    };
    const char first = digit_of(low, '0'), last = digit_of(high, '9');
    for (char digit = std::max(first, least); digit <= last; ++digit) {
      AddDigit(from, digit,
               {false, num_left, After(remainder, digit, num_left + spec_.step.decimals),
                digit == first ? low : nullptr, digit == last ? high : nullptr});
    }
  }

  // What has been read and a digit, which so many may follow, decimals that are not written
  // included.
  uint64_t After(uint64_t remainder, char digit, size_t num_left) {
    while (moduli_.size() <= num_left)
      moduli_.push_back(moduli_.back() / std::gcd(moduli_.back(), kBase));
    return (remainder * kBase + static_cast<uint64_t>(digit - '0')) % moduli_[num_left];
  }

  // `remainder` behind so many zeros.
  uint64_t Shifted(uint64_t remainder, size_t num_digits) const {
    const uint64_t units = spec_.step.units;
    for (size_t i = 0; i < num_digits && remainder != 0; ++i) remainder = remainder * kBase % units;
    return remainder % units;
  }
  // Whether digits that may still come make it a multiple, if no bound forbids them.
  bool MayBecomeMultiple(const Place& place) const {
    const size_t num_left = place.num_left + (place.is_fraction ? 0 : spec_.step.decimals);
    uint64_t reach = 1;  // what is missing may be anything below
    for (size_t i = 0; i < num_left && reach <= spec_.step.units; ++i) reach *= kBase;
    const uint64_t over = Shifted(place.remainder, num_left);
    return over == 0 || spec_.step.units - over < reach;
  }

  void AddDigit(NodeId from, char digit, const Place& place) {
    if (!MayBecomeMultiple(place)) return;
    builder_->AddBytes(from, static_cast<uint8_t>(digit), static_cast<uint8_t>(digit),
                       NodeOf(place));
  }

  NodeId NodeOf(const Place& place) {
    const auto [known, is_new] =
        nodes_.try_emplace({place.is_fraction, place.num_left, place.remainder,
                            place.low != nullptr, place.high != nullptr},
                           kNoNode);
    if (!is_new) return known->second;
    const NodeId node = known->second = builder_->AddNode(rule_);
    *steps_left_ -= kStepsOfNode;
    if (*steps_left_ < 0) return node;
    if (!place.is_fraction && place.num_left > 0) {
      AddDigits(node, place.num_left - 1, place.remainder, place.low, place.high, '0');
      return node;
    }
    const auto decimals = static_cast<size_t>(spec_.step.decimals);
    const size_t num_read = place.is_fraction ? decimals - place.num_left : 0;
    const bool is_multiple = Shifted(place.remainder, decimals - num_read) == 0;
    if (is_multiple && FractionMayEnd(num_read, place.low, place.high)) builder_->SetFinal(node);
    if (num_read == static_cast<size_t>(spec_.decimals_max)) return node;
    const NodeId digits = place.is_fraction ? node : builder_->AddLiteral(node, ".");
    const char first = FractionDigit(place.low, num_read, '0');
    const char last = FractionDigit(place.high, num_read, '9');
    const size_t num_left = decimals - num_read - 1;
    for (char digit = first; digit <= last; ++digit) {
      AddDigit(digits, digit,
               {true, num_left, After(place.remainder, digit, num_left),
                digit == first ? place.low : nullptr, digit == last ? place.high : nullptr});
    }
    return node;
  }

  GrammarBuilder* const builder_;
  const RuleId rule_;
  const MultipleSpec& spec_;
  int* const steps_left_;
  // By how many digits may still come: what remainders are taken by.
  std::vector<uint64_t> moduli_;
  std::map<std::tuple<bool, size_t, uint64_t, bool, bool>, NodeId> nodes_;
};

std::optional<DecimalStep> StepOf(const DecimalBound& decimal) {
  DecimalStep result = {.units = 0, .decimals = static_cast<int>(decimal.fraction.size())};
  const std::string digits = absl::StrCat(decimal.integer, decimal.fraction);
  const size_t zeros = std::min(digits.find_first_not_of('0'), digits.size());
  if (digits.size() - zeros > limits::kJsonIntegerDigitsMax) return std::nullopt;
  if (!absl::SimpleAtoi(digits.substr(zeros), &result.units)) return std::nullopt;
  return result;
}

}  // namespace

std::optional<DecimalStep> StepOf(double step) {
  return step > 0 ? StepOf(MagnitudeOf({.number = step})) : std::nullopt;
}
std::optional<DecimalStep> StepOf(int64_t step) {
  return step > 0 ? StepOf(BoundOf(step)) : std::nullopt;
}

absl::StatusOr<RuleId> MultipleRange(GrammarBuilder* builder, const MultipleSpec& spec,
                                     int* steps_left) {
  const RuleId rule = builder->AddRule();
  const NodeId entry = builder->Entry(rule);
  // Magnitudes between two bounds; without the first, from zero, that included or not. By a builder
  // of their own: with other bounds, the same digits are at other places.
  const auto add = [&](NodeId from, const std::optional<DecimalBound>& low, bool has_zero,
                       const std::optional<DecimalBound>& high) {
    const DecimalBound zero = {.integer = "0", .fraction = "", .is_inclusive = has_zero};
    MultipleBuilder(builder, rule, spec, steps_left)
        .AddMagnitudes(from, low ? *low : zero, high ? &*high : nullptr);
  };
  const bool is_positive = spec.min && !spec.min->is_negative;
  const bool is_negative = spec.max && spec.max->is_negative;
  if (!is_negative) add(entry, is_positive ? spec.min : std::nullopt, true, spec.max);
  if (!is_positive) {  // never -0
    add(builder->AddLiteral(entry, "-"), is_negative ? spec.max : std::nullopt, false, spec.min);
  }
  if (*steps_left < 0) return absl::InvalidArgumentError("takes too many states to follow");
  return rule;
}

}  // namespace ultraspeed::grammar
