// Blocks of staging memory, used again and again because a model's parts have few sizes, within a
// window.
//
// The streams of one load share a pool; a block may outlive all of them. Owner: whoever loads, as a
// shared pointer. Thread: any.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "worker/model/read_options.h"

namespace ultraspeed::worker {

inline constexpr size_t kReadAlignment = 4096;  // of offsets, lengths and memory under O_DIRECT

class StagingPool : public std::enable_shared_from_this<StagingPool> {
 public:
  StagingPool(StagingMemory memory, int64_t window_bytes)
      : memory_(std::move(memory)), window_bytes_(window_bytes) {}
  ~StagingPool();

  // At least `bytes` bytes, given back when the last copy of the pointer goes. Null if they do not
  // fit into the window and are not `demanded`, or if there is no memory.
  std::shared_ptr<uint8_t> Take(size_t bytes, bool demanded);

  // A count of everything that could let a refused Take succeed: blocks that come back, and Wake.
  uint64_t changes() const;
  void Wake();
  // Returns once changes() is not `seen`.
  void WaitPast(uint64_t seen);

  int64_t bytes_held_max() const;  // at any one time, in use or not

 private:
  void Return(uint8_t* block, size_t bytes);
  void ReleaseIdle(int64_t until_bytes);

  const StagingMemory memory_;
  const int64_t window_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<size_t, std::vector<uint8_t*>> idle_;  // by size; guarded by mutex_, as is the rest
  int64_t bytes_held_ = 0;
  int64_t bytes_held_max_ = 0;
  uint64_t changes_ = 0;
};

}  // namespace ultraspeed::worker
