#include "worker/cpu/rank_group.h"

#include <algorithm>

#include "kernels/check.h"

namespace ultraspeed::worker {

RankGroup::RankGroup(int num_ranks, size_t sum_count_max) : threads_(num_ranks) {
  if (num_ranks == 1) return;
  parts_.resize(static_cast<size_t>(num_ranks));
  num_sums_.resize(static_cast<size_t>(num_ranks));
  for (std::vector<float>& sums : sums_) sums.resize(sum_count_max);
}

void RankGroup::Sum(int rank, float* data, size_t count) {
  if (num_ranks() == 1) return;
  const auto r = static_cast<size_t>(rank), n = static_cast<size_t>(num_ranks());
  std::vector<float>& sums = sums_[num_sums_[r]++ % 2];
  KERNELS_CHECK(count, <=, sums.size());
  parts_[r] = data;
  threads_.Meet();
  // Each rank adds its share of the elements.
  const size_t begin = count * r / n, end = count * (r + 1) / n;
  std::copy(parts_[0] + begin, parts_[0] + end, sums.begin() + static_cast<ptrdiff_t>(begin));
  for (size_t other = 1; other < n; ++other) {
    const float* const part = parts_[other];
    for (size_t i = begin; i < end; ++i) sums[i] += part[i];
  }
  threads_.Meet();
  std::copy_n(sums.begin(), count, data);
}

}  // namespace ultraspeed::worker
