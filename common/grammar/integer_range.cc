#include "common/grammar/integer_range.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace ultraspeed::grammar {
namespace {

class RangeBuilder {
 public:
  RangeBuilder(GrammarBuilder* builder, RuleId rule) : builder_(builder), rule_(rule) {
    const NodeId end = builder_->AddNode(rule_);
    builder_->SetFinal(end);
    any_digits_ = {end};
  }

  // Behind `from`: the numbers from min to max.
  void AddNumbers(NodeId from, uint64_t min, uint64_t max) {
    const size_t num_digits_max = absl::StrCat(max).size();
    for (size_t num_digits = absl::StrCat(min).size(); num_digits <= num_digits_max; ++num_digits) {
      // Of so many digits, from 1000 or min to 9999 or max.
      std::string first = num_digits == 1 ? "0" : "1" + std::string(num_digits - 1, '0');
      std::string last(num_digits, '9');
      if (num_digits == absl::StrCat(min).size()) first = absl::StrCat(min);
      if (num_digits == num_digits_max) last = absl::StrCat(max);
      AddDigits(from, first, last);
    }
  }

 private:
  // Behind `from`: the texts between two of the same length, which is not zero.
  void AddDigits(NodeId from, absl::string_view first, absl::string_view last) {
    const auto add = [&](char digit_first, char digit_last, NodeId to) {
      if (digit_first > digit_last) return;
      builder_->AddBytes(from, static_cast<uint8_t>(digit_first), static_cast<uint8_t>(digit_last),
                         to);
    };
    const absl::string_view first_rest = first.substr(1), last_rest = last.substr(1);
    const std::string zeros(first_rest.size(), '0'), nines(first_rest.size(), '9');
    if (first[0] == last[0]) {
      add(first[0], first[0], Digits(first_rest, last_rest));
    } else if (first_rest == zeros && last_rest == nines) {
      add(first[0], last[0], AnyDigits(zeros.size()));
    } else {
      add(first[0], first[0], Digits(first_rest, nines));
      add(first[0] + 1, last[0] - 1, AnyDigits(zeros.size()));
      add(last[0], last[0], Digits(zeros, last_rest));
    }
  }

  // In front of the texts between two of the same length.
  NodeId Digits(absl::string_view first, absl::string_view last) {
    const bool is_any =
        first == std::string(first.size(), '0') && last == std::string(last.size(), '9');
    if (is_any) return AnyDigits(first.size());
    const NodeId node = builder_->AddNode(rule_);
    AddDigits(node, first, last);
    return node;
  }

  // In front of so many digits, whichever.
  NodeId AnyDigits(size_t num_digits) {
    while (any_digits_.size() <= num_digits) {
      const NodeId node = builder_->AddNode(rule_);
      builder_->AddBytes(node, '0', '9', any_digits_.back());
      any_digits_.push_back(node);
    }
    return any_digits_[num_digits];
  }

  GrammarBuilder* const builder_;
  const RuleId rule_;
  std::vector<NodeId> any_digits_;  // by how many are to come
};

uint64_t Magnitude(int64_t negative) { return uint64_t{0} - static_cast<uint64_t>(negative); }

}  // namespace

RuleId IntegerRange(GrammarBuilder* builder, int64_t min, int64_t max) {
  CHECK_THAT(min, <=, max);
  const RuleId rule = builder->AddRule();
  RangeBuilder range(builder, rule);
  const NodeId entry = builder->Entry(rule);
  if (max >= 0) {
    range.AddNumbers(entry, static_cast<uint64_t>(std::max<int64_t>(min, 0)),
                     static_cast<uint64_t>(max));
  }
  if (min < 0) {
    range.AddNumbers(builder->AddLiteral(entry, "-"), Magnitude(std::min<int64_t>(max, -1)),
                     Magnitude(min));
  }
  return rule;
}

}  // namespace ultraspeed::grammar
