// A fixed array of zeros whose pages the system hands out on first use, so a large, mostly idle KV
// cache costs nothing at start. It begins at a cache line: a tile register takes three times as
// long to load rows that straddle two.
//
// Callers: the caches and scratch buffers of worker/cpu. Thread: as its owner says.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/cpu/large_pages.h"

namespace ultraspeed::worker {

template <typename T>
class ZeroedArray {
 public:
  ZeroedArray() = default;
  // Nobody catches std::bad_alloc: out of memory at start-up ends the process.
  explicit ZeroedArray(size_t count)
      : memory_(kernels::AllocateZeros(std::max<size_t>(1, count * sizeof(T)))) {}
  T* data() { return reinterpret_cast<T*>(memory_.get()); }
  const T* data() const { return reinterpret_cast<const T*>(memory_.get()); }
  T& operator[](size_t i) { return data()[i]; }

 private:
  std::shared_ptr<uint8_t[]> memory_;
};

}  // namespace ultraspeed::worker
