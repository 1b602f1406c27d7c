// A fixed array of zeros whose pages the system hands out on first use, so a large, mostly idle KV
// cache costs nothing at start.
//
// Callers: the caches and scratch buffers of worker/cpu. Thread: as its owner says.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace ultraspeed::worker {

template <typename T>
class ZeroedArray {
 public:
  ZeroedArray() = default;
  explicit ZeroedArray(size_t count)
      : data_(static_cast<T*>(std::calloc(count > 0 ? count : 1, sizeof(T)))) {
    if (data_ == nullptr)
      throw std::bad_alloc();  // nobody catches it: out of memory at start-up ends the process
  }
  T* data() { return data_.get(); }
  T& operator[](size_t i) { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  std::unique_ptr<T[], Free> data_;
};

}  // namespace ultraspeed::worker
