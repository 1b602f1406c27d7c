#include "worker/model/staging_pool.h"

#include <algorithm>
#include <cstdlib>

#include "kernels/usable_cores.h"

namespace ultraspeed::worker {
namespace {

// Within an eighth of `bytes`, so that parts of nearly equal size share blocks.
size_t BlockBytes(size_t bytes) {
  size_t step = kReadAlignment;
  while (step * 16 < bytes) step *= 2;
  return std::max(step, (bytes + step - 1) / step * step);
}

}  // namespace

int DefaultReadThreads() { return std::clamp(kernels::NumUsableCores() / 2, 2, 16); }

StagingMemory PlainStaging() {
  return {.allocate = [](size_t bytes) { return std::aligned_alloc(kReadAlignment, bytes); },
          .release = [](void* block) { std::free(block); }};
}

StagingPool::~StagingPool() { ReleaseIdle(0); }

std::shared_ptr<uint8_t> StagingPool::Take(size_t bytes, bool demanded) {
  const size_t size = BlockBytes(bytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  uint8_t* block = nullptr;
  if (std::vector<uint8_t*>& idle = idle_[size]; !idle.empty()) {
    block = idle.back();
    idle.pop_back();
  } else {
    ReleaseIdle(window_bytes_ - static_cast<int64_t>(size));
    if (!demanded && bytes_held_ + static_cast<int64_t>(size) > window_bytes_) return nullptr;
    block = static_cast<uint8_t*>(memory_.allocate(size));
    if (block == nullptr) return nullptr;
    bytes_held_ += static_cast<int64_t>(size);
    bytes_held_max_ = std::max(bytes_held_max_, bytes_held_);
  }
  return {block, [pool = shared_from_this(), size](uint8_t* back) { pool->Return(back, size); }};
}

void StagingPool::Return(uint8_t* block, size_t bytes) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_[bytes].push_back(block);
    ReleaseIdle(window_bytes_);
    ++changes_;
  }
  changed_.notify_all();
}

// Gives idle blocks back to the system, large ones first, while more than `until_bytes` are held.
void StagingPool::ReleaseIdle(int64_t until_bytes) {
  for (auto size = idle_.rbegin(); size != idle_.rend(); ++size) {
    while (!size->second.empty() && bytes_held_ > until_bytes) {
      memory_.release(size->second.back());
      size->second.pop_back();
      bytes_held_ -= static_cast<int64_t>(size->first);
    }
  }
}

uint64_t StagingPool::changes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return changes_;
}

void StagingPool::Wake() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++changes_;
  }
  changed_.notify_all();
}

void StagingPool::WaitPast(uint64_t seen) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return changes_ != seen; });
}

int64_t StagingPool::bytes_held_max() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return bytes_held_max_;
}

}  // namespace ultraspeed::worker
