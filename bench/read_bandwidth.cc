#include "bench/read_bandwidth.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <vector>

#include "kernels/thread_pool.h"

namespace ultraspeed::bench {
namespace {

constexpr int kPasses = 12;
constexpr int kLanes =
    8;  // independent sums of 8 words each: enough loads in flight to fill the memory pipe

// Eight 64-byte vectors; the compiler maps the arithmetic to whatever the baseline offers.
using Vector = uint64_t __attribute__((vector_size(64)));

uint64_t Sum(const Vector* begin, size_t count) {
  Vector sums[kLanes] = {};
  for (size_t i = 0; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] ^= begin[i + lane];
  }
  for (int lane = 1; lane < kLanes; ++lane) sums[0] ^= sums[lane];
  return sums[0][0] ^ sums[0][7];
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) uint64_t SumAvx512(const Vector* begin, size_t count) {
  Vector sums[kLanes] = {};
  for (size_t i = 0; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] ^= begin[i + lane];
  }
  for (int lane = 1; lane < kLanes; ++lane) sums[0] ^= sums[lane];
  return sums[0][0] ^ sums[0][7];
}
#endif

uint64_t FastestSum(const Vector* begin, size_t count) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return SumAvx512(begin, count);
#endif
  return Sum(begin, count);
}

}  // namespace

double MeasureReadBandwidth(size_t bytes, int num_threads) {
  kernels::ThreadPool pool(num_threads);
  const size_t per_thread = bytes / sizeof(Vector) / num_threads;
  std::vector<uint64_t> storage((per_thread * num_threads + 1) * kLanes, 1);
  const auto address = reinterpret_cast<uintptr_t>(storage.data());
  const Vector* data =
      reinterpret_cast<const Vector*>((address + sizeof(Vector) - 1) & ~(sizeof(Vector) - 1));

  std::vector<uint64_t> sinks(num_threads);
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    pool.ParallelFor(num_threads,
                     [&](int t) { sinks[t] ^= FastestSum(data + t * per_thread, per_thread); });
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, per_thread * num_threads * sizeof(Vector) / seconds);
  }
  volatile uint64_t keep = std::accumulate(sinks.begin(), sinks.end(), uint64_t{0});
  (void)keep;
  return best;
}

}  // namespace ultraspeed::bench
