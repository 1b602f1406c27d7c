// How far a model that runs as several ranks is from itself as one: logits of one text, row by row.
//
// Ranks add the same products in another order, so fp32 sums differ in their last bits, and where
// such a sum is rounded to bf16, now and then by one bf16 unit (2^-8 of the value): a small part of
// the logits' own spread. Where two experts of a token score equal to within that, one can be
// swapped for the other, and that token's logits differ visibly; it happens to a few rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "worker/model_executor.h"

namespace ultraspeed::worker {

struct RankDifference {
  std::vector<double> row_largest;  // [rows] largest difference of a row's logits, ascending
  double root_mean_square = 0;
  double deviation = 0;    // of the logits themselves
  double same_choice = 0;  // share of rows with the same argmax

  // The largest difference in the best `share` of rows.
  double LargestOf(double share) const {
    return row_largest[static_cast<size_t>(share * static_cast<double>(row_largest.size() - 1))];
  }
  std::string ToString() const {
    return absl::StrFormat(
        "logits of deviation %.3f differ by %.4f (median row), %.4f (97 of 100 rows), %.4f (all), "
        "%.5f rms; %.1f %% of choices agree",
        deviation, LargestOf(0.5), LargestOf(0.97), LargestOf(1), root_mean_square,
        100 * same_choice);
  }
};

inline std::vector<float> LogitsOf(ModelExecutor& executor, const std::vector<int32_t>& text) {
  std::vector<int32_t> pages(static_cast<size_t>(executor.num_pages()));
  std::iota(pages.begin(), pages.end(), 0);
  executor.ResetSlot(0);
  std::vector<float> logits(text.size() * static_cast<size_t>(executor.config().vocabulary));
  executor.Logits({.tokens = text.data(),
                   .num_tokens = static_cast<int>(text.size()),
                   .pages = pages.data(),
                   .num_pages = static_cast<int>(pages.size())},
                  logits.data());
  return logits;
}

// Of greedy text: the number of leading tokens that agree.
inline size_t CommonLength(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first -
                             a.begin());
}

inline RankDifference CompareLogits(ModelExecutor& whole, ModelExecutor& ranks,
                                    const std::vector<int32_t>& text) {
  const std::vector<float> want = LogitsOf(whole, text), got = LogitsOf(ranks, text);
  const auto vocabulary = static_cast<size_t>(whole.config().vocabulary);
  RankDifference difference;
  double squares = 0, error_squares = 0;
  for (size_t row = 0; row < text.size(); ++row) {
    const float *w = &want[row * vocabulary], *g = &got[row * vocabulary];
    double& row_largest = difference.row_largest.emplace_back(0);
    for (size_t i = 0; i < vocabulary; ++i) {
      const double error = std::abs(static_cast<double>(g[i]) - w[i]);
      row_largest = std::max(row_largest, error);
      error_squares += error * error;
      squares += static_cast<double>(w[i]) * w[i];
    }
    if (std::max_element(g, g + vocabulary) - g == std::max_element(w, w + vocabulary) - w)
      difference.same_choice += 1.0 / static_cast<double>(text.size());
  }
  std::sort(difference.row_largest.begin(), difference.row_largest.end());
  const auto count = static_cast<double>(want.size());
  difference.deviation = std::sqrt(squares / count);
  difference.root_mean_square = std::sqrt(error_squares / count);
  return difference;
}

}  // namespace ultraspeed::worker
