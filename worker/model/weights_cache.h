// One rank's packed weights as a file that is read back in order at the disk's speed: its format,
// its checks, its reader and writer, for any device.
//
// A file holds the bytes of device memory as they were once everything was packed, and says what
// they were made of: format, checkpoint, layout, rank. Anything that differs makes it stale, and
// each chunk carries a checksum, so a cache can be wrong only by being refused. It is written
// beside its place and renamed, by one process at a time. File: 8 bytes of magic; u32 number of
// bytes of the text, u32 zero; u64 checksum of text and table; the text, CacheIdentity::Text(); the
// table, a u64 checksum for each chunk; zeros up to a multiple of 4096; the payload. Little endian.
// Callers: worker/cuda/device_weights.cc. Thread: the loading thread; starts threads of its own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/model/part_stream.h"
#include "worker/model/sharding_plan.h"

namespace ultraspeed::worker {

inline constexpr int64_t kCacheChunkBytes = int64_t{4} << 20;

// What a cache was made of.
struct CacheIdentity {
  std::string checkpoint;  // CheckpointFingerprint
  std::string layout;      // of the packed bytes: device, code and config; one line
  Rank rank = {};
  int64_t payload_bytes = 0;

  // One line for each of them; equal where nothing differs.
  std::string Text() const;
};

// Of a folder's files with its dflash/: the names, sizes and times of change of the tensor files,
// the contents of configs and indexes. NOT_FOUND or UNAVAILABLE names what cannot be read.
absl::StatusOr<std::string> CheckpointFingerprint(const std::string& folder);

// "FOLDER/tiny-mimo.cuda.rank0-of-8.weights".
std::string CachePath(const std::string& cache_folder, const std::string& model,
                      const std::string& device, const Rank& rank);

class WeightsCacheReader {
 public:
  struct Chunk {
    int64_t offset = 0;  // in the payload
    StagedPart part;
  };

  // NOT_FOUND: there is none. FAILED_PRECONDITION: stale; says what differs. DATA_LOSS: damaged.
  // REQUIRES: options.threads >= 1.
  static absl::StatusOr<std::unique_ptr<WeightsCacheReader>> Open(
      const std::string& path, const CacheIdentity& identity, const ReadOptions& options,
      std::shared_ptr<StagingPool> pool);

  bool done() const { return next_ == checksums_.size(); }
  // In order. DATA_LOSS names the chunk whose checksum differs. REQUIRES: not done.
  absl::StatusOr<Chunk> Next();

 private:
  WeightsCacheReader(std::string path, std::vector<uint64_t> checksums)
      : path_(std::move(path)), checksums_(std::move(checksums)) {}

  const std::string path_;
  const std::vector<uint64_t> checksums_;  // of the chunks
  std::unique_ptr<PartStream> stream_;
  size_t next_ = 0;
};

// `copy_out` brings `bytes` bytes of the payload from `offset` to host memory; it is called by
// several threads. RESOURCE_EXHAUSTED: the disk is or would be full; the numbers say how much is
// missing. UNAVAILABLE: cannot be written, or another process is writing it. What lay there before
// is removed first, because its room may be needed; after an error nothing lies there.
absl::Status WriteWeightsCache(
    const std::string& path, const CacheIdentity& identity, int num_threads,
    const std::function<void(int64_t offset, void* out, int64_t bytes)>& copy_out);

}  // namespace ultraspeed::worker
