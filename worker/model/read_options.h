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

struct ReadOptions {
  int threads = 8;  // of one load, all ranks together; 0 = none: the loader reads mapped pages
  DirectReads direct = DirectReads::kAuto;
  // Bytes that are read before the loader asks for them, for each rank.
  int64_t window_bytes = int64_t{256} << 20;
};

}  // namespace ultraspeed::worker
