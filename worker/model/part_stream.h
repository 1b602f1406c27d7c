// Reads regions of files with several threads, in order and ahead of use, each byte once, and hands
// every rank its parts as contiguous staging memory.
//
// One load of a model by all ranks of a process makes one stream of each checkpoint folder. A
// large region that is cut by rows is read straight to its ranks' memory; a small one, one that is
// cut by columns, and one that all ranks need are read once and spread. The reading threads stay
// within the pool's window, except for a part that a rank already waits for: so ranks that hold
// parts while they ask for more cannot lock each other out. Owner: shared_reads.h,
// weights_cache.cc. Thread: Next from each rank's own thread; Fail from any; the reading threads
// are this object's own.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model/read_options.h"
#include "worker/model/sharding_plan.h"
#include "worker/model/staging_pool.h"

namespace ultraspeed::worker {

// num_rows rows of row_bytes, one behind the other in a file; `split` says what a rank takes.
struct FileRegion {
  int file = 0;  // into the stream's paths
  uint64_t offset = 0;
  int64_t num_rows = 1;
  int64_t row_bytes = 0;
  Split split = Split::kWhole;
};

// A rank's part of one region, in place while `lease` lives.
struct StagedPart {
  const uint8_t* data = nullptr;
  size_t bytes = 0;
  std::shared_ptr<const uint8_t> lease;
};

struct ReadStatistics {
  int64_t bytes = 0;         // that parts needed
  int64_t direct_bytes = 0;  // of them, past the page cache
};

class PartStream {
 public:
  // `ranks`: those that take parts here, of one model. NOT_FOUND or UNAVAILABLE names the file.
  // REQUIRES: options.threads >= 1; what is split divides by the ranks' count.
  static absl::StatusOr<std::unique_ptr<PartStream>> Open(const std::vector<std::string>& paths,
                                                          std::vector<FileRegion> regions,
                                                          const std::vector<Rank>& ranks,
                                                          const ReadOptions& options,
                                                          std::shared_ptr<StagingPool> pool);
  ~PartStream();  // does not wait for what has not been read
  PartStream(const PartStream&) = delete;
  PartStream& operator=(const PartStream&) = delete;

  // The rank's part of its next region; waits for it. DATA_LOSS or UNAVAILABLE names a file that
  // ends early or cannot be read; after Fail, its status. REQUIRES: rank_index is one of the ranks;
  // there is a region left for it.
  absl::StatusOr<StagedPart> Next(int rank_index);
  // This rank takes nothing more; the others go on. REQUIRES: no Next of its own, now or later.
  void Leave(int rank_index);
  // Nothing more is wanted, by any rank: `why` is what Next gives from now on. The first one
  // counts.
  void Fail(const absl::Status& why);

  ReadStatistics statistics() const;

 private:
  struct File {
    std::string path;
    int fd = -1;
    bool direct = false;
  };
  // On its way to one rank, or there.
  struct Part {
    size_t bytes = 0;
    std::shared_ptr<uint8_t> block;
    uint8_t* data = nullptr;  // inside the block
    int pieces_left = 0;
  };
  struct Receiver {
    Rank rank;
    std::deque<std::shared_ptr<Part>> parts;  // begun, in order
    bool waiting = false;
    bool gone = false;
  };
  // What one thread reads at a time.
  struct Piece {
    const FileRegion* region = nullptr;
    uint64_t offset = 0;  // of the file
    int64_t bytes = 0;
    bool spread = false;  // over several parts, or columns into one
    int64_t first = 0;    // row of the region when it is spread, else byte of the part
    std::vector<std::shared_ptr<Part>> parts;
    std::vector<Rank> ranks;  // of the parts, when it is spread
  };

  PartStream(std::vector<FileRegion> regions, const std::vector<Rank>& ranks,
             std::shared_ptr<StagingPool> pool);
  absl::Status OpenFiles(const std::vector<std::string>& paths, DirectReads direct);
  void Loop();
  // Makes pieces of the next region, or of one rank's rows of it. False if memory lacks. Under
  // mutex_.
  bool BeginNext();
  bool Begin(const FileRegion& region, const std::vector<Receiver*>& receivers);
  // `first_byte`: of the region.
  void AddStraightPieces(const FileRegion& region, int64_t first_byte,
                         const std::shared_ptr<Part>& part);
  void AddSpreadPieces(const FileRegion& region, const std::vector<Receiver*>& receivers,
                       const std::vector<std::shared_ptr<Part>>& parts);
  absl::Status Read(const Piece& piece, std::shared_ptr<uint8_t>& bounce,
                    size_t& bounce_bytes) const;
  void Spread(const Piece& piece, const uint8_t* rows) const;

  const std::vector<FileRegion> regions_;
  const std::shared_ptr<StagingPool> pool_;
  std::vector<File> files_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Receiver> receivers_;  // guarded by mutex_, as is the rest
  size_t next_region_ = 0;
  size_t next_receiver_ = 0;  // of a region that is cut by rows
  std::deque<Piece> pieces_;  // of regions that are begun
  absl::Status failure_;
  bool stopping_ = false;
  ReadStatistics statistics_;
  std::vector<std::thread> threads_;
};

}  // namespace ultraspeed::worker
