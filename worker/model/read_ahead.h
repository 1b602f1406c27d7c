// Threads that bring a checkpoint's pages into memory before the loading thread asks for them, so
// that a disk is read by several requests at once while the loader repacks.
//
// They read the mapped bytes and keep nothing: what is loaded, and in which order, does not depend
// on them. Ranges are read in the order given, at most a window ahead of what has been loaded, so
// that memory pressure cannot throw out pages before their use. Owner: weights_loader.h, for the
// time of one load. Thread: the loading thread calls Advance; the threads are this object's own.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "worker/model/checkpoint.h"
#include "worker/model/sharding_plan.h"
#include "worker/model/tensor_list.h"

namespace ultraspeed::worker {

// num_rows pieces of row_bytes, stride bytes apart.
struct MappedRange {
  const uint8_t* data = nullptr;
  int64_t num_rows = 0;
  int64_t row_bytes = 0;
  int64_t stride = 0;

  int64_t bytes() const { return num_rows * row_bytes; }
};

// Where the rank's parts of `tensors` lie, in that order; tensors that are missing or do not divide
// are left out, for the loader to refuse.
std::vector<MappedRange> PartRanges(const Checkpoint& checkpoint,
                                    const std::vector<TensorSpec>& tensors, const Rank& rank);

class ReadAhead {
 public:
  // REQUIRES: the ranges stay mapped while this object lives; num_threads >= 0.
  ReadAhead(const std::vector<MappedRange>& ranges, int num_threads, int64_t window_bytes);
  ~ReadAhead();  // does not wait for what has not been read
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // The loader is done with the first `bytes_loaded` bytes of all ranges.
  void Advance(int64_t bytes_loaded);

  int64_t bytes_started() const;  // never more than loaded + window + one piece for each thread
  int64_t bytes_read() const;

 private:
  struct Piece {
    MappedRange range;
    int64_t begin;  // bytes of all ranges before it
  };

  void Loop();

  std::vector<Piece> pieces_;
  const int64_t window_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable moved_;
  size_t next_ = 0;  // guarded by mutex_, as is the rest
  int64_t bytes_loaded_ = 0;
  int64_t bytes_started_ = 0;
  int64_t bytes_read_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace ultraspeed::worker
