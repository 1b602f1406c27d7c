#include "kernels/cpu/large_pages.h"

#include <sys/mman.h>

#include <cstdlib>
#include <mutex>
#include <new>

namespace ultraspeed::kernels {
namespace {

constexpr size_t kLineBytes = 64;
constexpr size_t kLargePageBytes = size_t{2} << 20;
constexpr size_t kMappingBytes = size_t{32} << 20;  // untouched parts of it cost nothing
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSharesMappings = false;  // who reads past a matrix shall not find another
#else
constexpr bool kSharesMappings = true;
#endif

size_t RoundUp(size_t x, size_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// Zeros that begin at a large page, handed out from the front.
class Mapping {
 public:
  explicit Mapping(size_t num_bytes) : mapped_bytes_(num_bytes + kLargePageBytes) {
    memory_ =
        mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    const auto address = reinterpret_cast<uintptr_t>(memory_);
    next_ = static_cast<uint8_t*>(memory_) + (RoundUp(address, kLargePageBytes) - address);
    end_ = next_ + num_bytes;
    madvise(next_, num_bytes, MADV_HUGEPAGE);  // refused: small pages do, too
  }
  ~Mapping() { munmap(memory_, mapped_bytes_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  // Null: there is no room.
  uint8_t* Take(size_t num_bytes) {
    if (num_bytes > static_cast<size_t>(end_ - next_)) return nullptr;
    uint8_t* const taken = next_;
    next_ += num_bytes;
    return taken;
  }

 private:
  const size_t mapped_bytes_;
  void* memory_;
  uint8_t* next_;
  uint8_t* end_;
};

}  // namespace

std::shared_ptr<uint8_t[]> AllocateZeros(size_t num_bytes) {
  static std::mutex mutex;
  static std::weak_ptr<Mapping> newest;  // the matrices keep it
  const size_t wanted = RoundUp(num_bytes, kLineBytes);
  if (!kSharesMappings) {
    std::shared_ptr<void> alone(std::calloc(wanted + kLineBytes, 1), std::free);
    if (alone == nullptr) throw std::bad_alloc();
    const auto address = reinterpret_cast<uintptr_t>(alone.get());
    return {std::move(alone), reinterpret_cast<uint8_t*>(RoundUp(address, kLineBytes))};
  }
  const std::lock_guard lock(mutex);
  std::shared_ptr<Mapping> mapping = newest.lock();
  uint8_t* taken = mapping == nullptr ? nullptr : mapping->Take(wanted);
  if (taken == nullptr) {
    const bool is_large = wanted > kMappingBytes / 2;  // has one of its own
    mapping =
        std::make_shared<Mapping>(is_large ? RoundUp(wanted, kLargePageBytes) : kMappingBytes);
    taken = mapping->Take(wanted);
    if (!is_large) newest = mapping;
  }
  return {std::move(mapping), taken};
}

}  // namespace ultraspeed::kernels
