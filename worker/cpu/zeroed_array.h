// A fixed array of zeros whose pages the system hands out on first use, so a large, mostly idle KV
// cache costs nothing at start. It begins at a cache line: a tile register takes three times as
// long to load rows that straddle two.
//
// Callers: the caches and scratch buffers of worker/cpu. Thread: as its owner says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace ultraspeed::worker {

template <typename T>
class ZeroedArray {
 public:
  ZeroedArray() = default;
  explicit ZeroedArray(size_t count) : memory_(std::calloc(count * sizeof(T) + kLineBytes, 1)) {
    if (memory_ == nullptr)
      throw std::bad_alloc();  // nobody catches it: out of memory at start-up ends the process
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    data_ = reinterpret_cast<T*>((address + kLineBytes - 1) / kLineBytes * kLineBytes);
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](size_t i) { return data_[i]; }

 private:
  static constexpr size_t kLineBytes = 64;
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  T* data_ = nullptr;
};

}  // namespace ultraspeed::worker
