// How many tokens of a row, and how much probability, lie how far below its largest logit: what
// narrows top-k and top-p down to a few tokens (sampling_filter.cuh). Host code only counts bytes.
#pragma once

#include <cstdint>

namespace ultraspeed::kernels::cuda {

using Atomic64 = unsigned long long;  // what CUDA's 64-bit atomics take

constexpr int kBins = 2048;

struct alignas(16) FilterHistogram {  // copied in pieces of 16 bytes
  uint32_t counts[kBins];
  Atomic64 masses[kBins];
};

// The slices of a row whose sums of exponentials a log-probability is made of.
constexpr int kSlices = 32;

struct SliceSum {
  float max;  // of the slice's logits
  float sum;  // of exp(logit - max)
};

}  // namespace ultraspeed::kernels::cuda
