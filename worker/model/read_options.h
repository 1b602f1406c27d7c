// How the bytes of a model's files come into memory. Plain data, and the memory they wait in.
//
// Callers: the executors, which know what their device needs; part_stream.h reads by it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace ultraspeed::worker {

// Whether files are read past the page cache (O_DIRECT). kAuto: the files that are not already in
// it, by a sample of their pages. A file system that refuses it is read through the page cache.
enum class DirectReads : uint8_t { kAuto, kNever, kAlways };

// Where bytes wait between the file and the device. Blocks are aligned to 4096 bytes.
struct StagingMemory {
  std::function<void*(size_t bytes)> allocate;  // null when there is none
  std::function<void(void* block)> release;
};
StagingMemory PlainStaging();  // ordinary memory

int DefaultReadThreads();  // half of the cores, from 2 to 16

struct ReadOptions {
  // Of one load, all ranks together; 0 = none: the loader reads mapped pages.
  int threads = DefaultReadThreads();
  // Through the page cache was faster on the one machine where it was measured, a virtual one
  // (docs/PERFORMANCE.md); `ultraspeed-bench load --stream_only` tells for another.
  DirectReads direct = DirectReads::kNever;
  // Bytes that are read before the loader asks for them, for each rank.
  int64_t window_bytes = int64_t{256} << 20;
};

}  // namespace ultraspeed::worker
