#include "worker/model/read_ahead.h"

#include <sys/mman.h>

#include <algorithm>

namespace ultraspeed::worker {
namespace {

constexpr int64_t kPieceBytes = int64_t{4} << 20;
constexpr uintptr_t kPageBytes = 4096;

// Reads one byte of every page of the range.
void Touch(const MappedRange& range) {
  const auto first = reinterpret_cast<uintptr_t>(range.data) & ~(kPageBytes - 1);
  const uint8_t* const end = range.data + (range.num_rows - 1) * range.stride + range.row_bytes;
  // One request for the whole; it is only advice, so a refusal does not matter.
  madvise(reinterpret_cast<void*>(first),
          static_cast<size_t>(end - range.data) + (reinterpret_cast<uintptr_t>(range.data) - first),
          MADV_WILLNEED);
  uintptr_t touched = 0;
  uint8_t sum = 0;
  for (int64_t row = 0; row < range.num_rows; ++row) {
    const uint8_t* const begin = range.data + row * range.stride;
    for (const uint8_t* at = begin; at < begin + range.row_bytes;) {
      const auto page = reinterpret_cast<uintptr_t>(at) / kPageBytes + 1;
      if (page != touched) sum = static_cast<uint8_t>(sum + *at);
      touched = page;
      at = reinterpret_cast<const uint8_t*>(page * kPageBytes);
    }
  }
  volatile uint8_t sink = sum;  // else the reads are no work that anyone sees
  static_cast<void>(sink);
}

}  // namespace

std::vector<MappedRange> PartRanges(const Checkpoint& checkpoint,
                                    const std::vector<TensorSpec>& tensors, const Rank& rank) {
  std::vector<MappedRange> ranges;
  for (const TensorSpec& spec : tensors) {
    const TensorView* const tensor = checkpoint.Find(spec.name);
    if (tensor == nullptr || tensor->shape.empty() || tensor->bytes == 0) continue;
    const int64_t num_rows = tensor->shape.front();
    const int64_t row_bytes = static_cast<int64_t>(tensor->bytes) / num_rows;
    const Split split = rank.count == 1 ? Split::kWhole : SplitOf(spec.name);
    MappedRange range{tensor->data, num_rows, row_bytes, row_bytes};
    if (split == Split::kRows) {
      range.num_rows /= rank.count;
      range.data += rank.index * range.num_rows * row_bytes;
    } else if (split == Split::kColumns) {
      range.row_bytes /= rank.count;
      range.data += rank.index * range.row_bytes;
    }
    ranges.push_back(range);
  }
  return ranges;
}

ReadAhead::ReadAhead(const std::vector<MappedRange>& ranges, int num_threads, int64_t window_bytes)
    : window_bytes_(window_bytes) {
  int64_t begin = 0;
  for (MappedRange range : ranges) {
    if (range.bytes() == 0) continue;
    if (range.stride == range.row_bytes) {  // one piece of memory: cut it anywhere
      range = {range.data, 1, range.bytes(), range.bytes()};
      for (int64_t at = 0; at < range.row_bytes; at += kPieceBytes) {
        const int64_t bytes = std::min(kPieceBytes, range.row_bytes - at);
        pieces_.push_back({{range.data + at, 1, bytes, bytes}, begin + at});
      }
    } else {
      const int64_t rows = std::max<int64_t>(1, kPieceBytes / range.row_bytes);
      for (int64_t row = 0; row < range.num_rows; row += rows) {
        pieces_.push_back({{range.data + row * range.stride, std::min(rows, range.num_rows - row),
                            range.row_bytes, range.stride},
                           begin + row * range.row_bytes});
      }
    }
    begin += range.bytes();
  }
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Loop(); });
}

ReadAhead::~ReadAhead() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  moved_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ReadAhead::Advance(int64_t bytes_loaded) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    bytes_loaded_ = std::max(bytes_loaded_, bytes_loaded);
    // What the loader has passed needs no reading ahead.
    while (next_ < pieces_.size() &&
           pieces_[next_].begin + pieces_[next_].range.bytes() <= bytes_loaded_) {
      ++next_;
    }
  }
  moved_.notify_all();
}

int64_t ReadAhead::bytes_started() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return bytes_started_;
}

int64_t ReadAhead::bytes_read() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return bytes_read_;
}

void ReadAhead::Loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    moved_.wait(lock, [this] {
      return stopping_ || next_ >= pieces_.size() ||
             pieces_[next_].begin < bytes_loaded_ + window_bytes_;
    });
    if (stopping_ || next_ >= pieces_.size()) return;
    const Piece& piece = pieces_[next_++];
    bytes_started_ = piece.begin + piece.range.bytes();
    lock.unlock();
    Touch(piece.range);
    lock.lock();
    bytes_read_ += piece.range.bytes();
  }
}

}  // namespace ultraspeed::worker
