// Rows that the processor's caches have long lost, asked for all at once: one after the other, each
// line would take a round trip of its own.
#pragma once

#include "kernels/ops.h"

namespace ultraspeed::worker {

// Lines of 32 values. For reading and for writing.
inline void Prefetch(const kernels::bf16* row, int count) {
  for (int i = 0; i < count; i += 32) __builtin_prefetch(row + i);
}
inline void PrefetchToWrite(kernels::bf16* row, int count) {
  for (int i = 0; i < count; i += 32) __builtin_prefetch(row + i, 1);
}

}  // namespace ultraspeed::worker
