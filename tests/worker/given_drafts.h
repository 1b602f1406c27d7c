// Drafts that a step brings along, for tests that know what must follow.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "worker/batch.h"

namespace ultraspeed::worker {

class GivenDrafts {
 public:
  // The next `count` tokens of `output`, which follows `num_prompt_tokens`, the one at `wrong_at`
  // spoiled; nothing while the prompt runs. The drafts live as long as this.
  void Give(SequenceStep& step, size_t num_prompt_tokens, const std::vector<int32_t>& output,
            size_t count, size_t wrong_at) {
    tokens_.clear();
    if (step.computed < static_cast<int64_t>(num_prompt_tokens)) return;
    const size_t known = static_cast<size_t>(step.computed) + 1 - num_prompt_tokens;
    count = std::min(count, output.size() - known);
    const auto begin = output.begin() + static_cast<ptrdiff_t>(known);
    tokens_.assign(begin, begin + static_cast<ptrdiff_t>(count));
    if (wrong_at < count) tokens_[wrong_at] = tokens_[wrong_at] == 5 ? 6 : 5;
    num_right_ = static_cast<int>(std::min(count, wrong_at));
    step.drafts = tokens_.data();
    step.num_drafts = static_cast<int>(count);
  }
  // Of the drafts given last, how many come before the spoiled one.
  int num_right() const { return num_right_; }

 private:
  std::vector<int32_t> tokens_;
  int num_right_ = 0;
};

}  // namespace ultraspeed::worker
