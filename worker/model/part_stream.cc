#include "worker/model/part_stream.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace ultraspeed::worker {
namespace {

constexpr int64_t kPieceBytes = int64_t{4} << 20;  // of one read
constexpr auto kAlign = static_cast<int64_t>(kReadAlignment);
// A region that is cut by rows and this small is read at once for all: scales, mostly.
constexpr int64_t kSpreadBytesMax = int64_t{512} << 10;
constexpr int64_t kPartAlignment = 256;  // of the parts of one block
constexpr int kResidencySamples = 64;
constexpr size_t kSamplePages = 16;

int64_t RoundDown(int64_t value) { return value / kAlign * kAlign; }
int64_t RoundUp(int64_t value, int64_t multiple = kAlign) {
  return (value + multiple - 1) / multiple * multiple;
}

// Whether most of the file is in the page cache, by evenly spaced samples. True where that cannot
// be known: reading through the cache is never wrong.
bool IsCached(int fd, uint64_t bytes) {
  constexpr size_t kPageBytes = 4096;
  if (bytes == 0) return true;
  void* const mapping = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (mapping == MAP_FAILED) return true;
  const size_t num_pages = (bytes + kPageBytes - 1) / kPageBytes;
  size_t seen = 0, resident = 0;
  for (int sample = 0; sample < kResidencySamples; ++sample) {
    const size_t first = num_pages * static_cast<size_t>(sample) / kResidencySamples;
    const size_t count = std::min(kSamplePages, num_pages - first);
    unsigned char pages[kSamplePages] = {};
    if (mincore(static_cast<uint8_t*>(mapping) + first * kPageBytes, count * kPageBytes, pages) !=
        0) {
      seen = 0;
      break;
    }
    seen += count;
    resident += static_cast<size_t>(
        std::count_if(pages, pages + count, [](unsigned char page) { return (page & 1) != 0; }));
  }
  munmap(mapping, bytes);
  return seen == 0 || resident * 2 > seen;
}

absl::Status ReadError(const std::string& path, uint64_t offset, int error) {
  return absl::UnavailableError(
      absl::StrCat(path, ": cannot be read at byte ", offset, ": ", std::strerror(error)));
}

// Bytes that `rank` takes of a region, and where they begin: bytes of the region when it is cut by
// rows, of each row otherwise.
struct Cut {
  int64_t begin = 0;
  int64_t bytes = 0;
};

Cut CutOf(const FileRegion& region, const Rank& rank) {
  const int64_t all = region.num_rows * region.row_bytes;
  switch (region.split) {
    case Split::kRows: {
      const int64_t bytes = region.num_rows / rank.count * region.row_bytes;
      return {rank.index * bytes, bytes};
    }
    case Split::kColumns: {
      const int64_t bytes = region.row_bytes / rank.count;
      return {rank.index * bytes, bytes * region.num_rows};
    }
    case Split::kWhole:
      break;
  }
  return {0, all};
}

}  // namespace

absl::StatusOr<std::unique_ptr<PartStream>> PartStream::Open(const std::vector<std::string>& paths,
                                                             std::vector<FileRegion> regions,
                                                             const std::vector<Rank>& ranks,
                                                             const ReadOptions& options,
                                                             std::shared_ptr<StagingPool> pool) {
  KERNELS_CHECK(options.threads, >=, 1);
  std::unique_ptr<PartStream> stream(new PartStream(std::move(regions), ranks, std::move(pool)));
  if (absl::Status status = stream->OpenFiles(paths, options.direct); !status.ok()) return status;
  for (int i = 0; i < options.threads; ++i)
    stream->threads_.emplace_back([raw = stream.get()] { raw->Loop(); });
  return stream;
}

PartStream::PartStream(std::vector<FileRegion> regions, const std::vector<Rank>& ranks,
                       std::shared_ptr<StagingPool> pool)
    : regions_(std::move(regions)), pool_(std::move(pool)) {
  for (const Rank& rank : ranks) receivers_.push_back({.rank = rank, .parts = {}});
}

PartStream::~PartStream() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  pool_->Wake();
  for (std::thread& thread : threads_) thread.join();
  for (const File& file : files_) {
    if (file.fd >= 0) close(file.fd);
  }
}

absl::Status PartStream::OpenFiles(const std::vector<std::string>& paths, DirectReads direct) {
  for (const std::string& path : paths) {
    files_.push_back({.path = path});
    File& file = files_.back();
    file.fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat info = {};
    if (file.fd < 0 || fstat(file.fd, &info) != 0)
      return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
    if (direct == DirectReads::kNever ||
        (direct == DirectReads::kAuto && IsCached(file.fd, static_cast<uint64_t>(info.st_size)))) {
      continue;
    }
    const int direct_fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (direct_fd < 0) continue;  // not every file system has it
    close(file.fd);
    file.fd = direct_fd;
    file.direct = true;
  }
  return absl::OkStatus();
}

absl::StatusOr<StagedPart> PartStream::Next(int rank_index) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto receiver = std::find_if(receivers_.begin(), receivers_.end(),
                                     [&](const Receiver& r) { return r.rank.index == rank_index; });
  KERNELS_CHECK(receiver != receivers_.end(), ==, true);
  const auto ready = [&] {
    return !failure_.ok() ||
           (!receiver->parts.empty() && receiver->parts.front()->pieces_left == 0);
  };
  if (!ready()) {
    receiver->waiting = true;
    lock.unlock();
    pool_->Wake();  // memory for what is waited for is beyond the window
    lock.lock();
    changed_.wait(lock, ready);
    receiver->waiting = false;
  }
  if (!failure_.ok()) return failure_;
  const std::shared_ptr<Part> part = std::move(receiver->parts.front());
  receiver->parts.pop_front();
  return StagedPart{part->data, part->bytes, part->block};
}

void PartStream::Leave(int rank_index) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Receiver& receiver : receivers_) {
      if (receiver.rank.index != rank_index) continue;
      receiver.gone = true;
      receiver.parts.clear();
    }
  }
  pool_->Wake();
}

void PartStream::Fail(const absl::Status& why) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (failure_.ok()) failure_ = why;
    for (Receiver& receiver : receivers_) receiver.parts.clear();
    pieces_.clear();
  }
  changed_.notify_all();
  pool_->Wake();
}

ReadStatistics PartStream::statistics() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return statistics_;
}

void PartStream::Loop() {
  std::shared_ptr<uint8_t> bounce;  // this thread's, for what is spread
  size_t bounce_bytes = 0;
  for (;;) {
    const uint64_t seen = pool_->changes();
    Piece piece;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stopping_ || !failure_.ok()) return;
      while (pieces_.empty()) {
        if (next_region_ == regions_.size()) return;
        if (!BeginNext()) break;
      }
      if (!pieces_.empty()) {
        piece = std::move(pieces_.front());
        pieces_.pop_front();
      }
    }
    if (piece.region == nullptr) {
      pool_->WaitPast(seen);
      continue;
    }
    const absl::Status status = Read(piece, bounce, bounce_bytes);
    if (!status.ok()) {
      Fail(status);
      return;
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      statistics_.bytes += piece.bytes;
      if (files_[static_cast<size_t>(piece.region->file)].direct)
        statistics_.direct_bytes += piece.bytes;
      for (const std::shared_ptr<Part>& part : piece.parts) --part->pieces_left;
    }
    changed_.notify_all();
  }
}

bool PartStream::BeginNext() {
  const FileRegion& region = regions_[next_region_];
  const bool one_by_one =
      region.split == Split::kRows && region.num_rows * region.row_bytes > kSpreadBytesMax;
  std::vector<Receiver*> receivers;
  for (Receiver& receiver : receivers_) {
    if (!receiver.gone && (!one_by_one || &receiver == &receivers_[next_receiver_]))
      receivers.push_back(&receiver);
  }
  if (!receivers.empty() && !Begin(region, receivers)) return false;
  if (!one_by_one || ++next_receiver_ == receivers_.size()) {
    ++next_region_;
    next_receiver_ = 0;
  }
  pool_->Wake();  // other threads may take pieces, or a next region
  return true;
}

bool PartStream::Begin(const FileRegion& region, const std::vector<Receiver*>& receivers) {
  const bool demanded = std::any_of(receivers.begin(), receivers.end(), [](const Receiver* r) {
    return r->waiting && r->parts.empty();
  });
  const bool straight = receivers.size() == 1 &&
                        (region.split != Split::kColumns || receivers.front()->rank.count == 1);
  // One block for all, so that memory is there for every receiver or for none. A straight read has
  // room for the aligned bytes around, which it may bring along.
  int64_t block_bytes = straight ? 2 * kAlign : 0;
  for (const Receiver* receiver : receivers)
    block_bytes += RoundUp(CutOf(region, receiver->rank).bytes, kPartAlignment);
  const std::shared_ptr<uint8_t> block = pool_->Take(static_cast<size_t>(block_bytes), demanded);
  if (block == nullptr) {
    if (demanded) {
      failure_ = absl::ResourceExhaustedError(
          absl::StrCat("no staging memory for ", block_bytes, " bytes of ",
                       files_[static_cast<size_t>(region.file)].path));
      changed_.notify_all();
    }
    return false;
  }
  std::vector<std::shared_ptr<Part>> parts;
  uint8_t* data = block.get();
  for (const Receiver* receiver : receivers) {
    const int64_t bytes = CutOf(region, receiver->rank).bytes;
    parts.push_back(std::make_shared<Part>(
        Part{.bytes = static_cast<size_t>(bytes), .block = block, .data = data}));
    data += RoundUp(bytes, kPartAlignment);
  }
  if (straight) {
    AddStraightPieces(region, CutOf(region, receivers.front()->rank).begin, parts.front());
  } else {
    AddSpreadPieces(region, receivers, parts);
  }
  for (size_t i = 0; i < receivers.size(); ++i) receivers[i]->parts.push_back(std::move(parts[i]));
  return true;
}

// Cut at aligned offsets of the file; memory lies as the file does.
void PartStream::AddStraightPieces(const FileRegion& region, int64_t first_byte,
                                   const std::shared_ptr<Part>& part) {
  const int64_t begin = static_cast<int64_t>(region.offset) + first_byte,
                end = begin + static_cast<int64_t>(part->bytes);
  if (files_[static_cast<size_t>(region.file)].direct) part->data += begin % kAlign;
  for (int64_t at = begin; at < end;) {
    const int64_t next = std::min(end, RoundDown(at + kPieceBytes));
    pieces_.push_back({.region = &region,
                       .offset = static_cast<uint64_t>(at),
                       .bytes = next - at,
                       .spread = false,
                       .first = at - begin,
                       .parts = {part},
                       .ranks = {}});
    part->pieces_left += 1;
    at = next;
  }
}

void PartStream::AddSpreadPieces(const FileRegion& region, const std::vector<Receiver*>& receivers,
                                 const std::vector<std::shared_ptr<Part>>& parts) {
  std::vector<Rank> ranks;
  for (const Receiver* receiver : receivers) ranks.push_back(receiver->rank);
  const int64_t rows = std::max<int64_t>(1, kPieceBytes / region.row_bytes);
  for (int64_t row = 0; row < region.num_rows; row += rows) {
    pieces_.push_back({.region = &region,
                       .offset = region.offset + static_cast<uint64_t>(row * region.row_bytes),
                       .bytes = std::min(rows, region.num_rows - row) * region.row_bytes,
                       .spread = true,
                       .first = row,
                       .parts = parts,
                       .ranks = ranks});
    for (const std::shared_ptr<Part>& part : parts) part->pieces_left += 1;
  }
}

absl::Status PartStream::Read(const Piece& piece, std::shared_ptr<uint8_t>& bounce,
                              size_t& bounce_bytes) const {
  const File& file = files_[static_cast<size_t>(piece.region->file)];
  const auto begin = static_cast<int64_t>(piece.offset), end = begin + piece.bytes;
  const int64_t from = file.direct ? RoundDown(begin) : begin;
  const int64_t to = file.direct ? RoundUp(end) : end;
  uint8_t* memory = nullptr;  // of `from`
  if (piece.spread) {
    const auto needed = static_cast<size_t>(RoundUp(to - from));
    if (bounce_bytes < needed) {
      bounce.reset(static_cast<uint8_t*>(std::aligned_alloc(kReadAlignment, needed)),
                   [](uint8_t* block) { std::free(block); });
      bounce_bytes = needed;
    }
    memory = bounce.get();
  } else {
    memory = piece.parts.front()->data + piece.first - (begin - from);
  }
  for (int64_t at = from; at < end;) {
    const ssize_t count =
        pread(file.fd, memory + (at - from), static_cast<size_t>(to - at), static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ReadError(file.path, static_cast<uint64_t>(at), errno);
    // A direct read is short at the end of its file only, and cannot go on from there.
    if (count == 0 || (file.direct && count % kAlign != 0 && at + count < end)) {
      return absl::DataLossError(
          absl::StrCat(file.path, ": ends before byte ", end, ", which is part of a tensor"));
    }
    at += count;
  }
  if (piece.spread) Spread(piece, memory + (begin - from));
  return absl::OkStatus();
}

void PartStream::Spread(const Piece& piece, const uint8_t* rows) const {
  const FileRegion& region = *piece.region;
  const int64_t num_rows = piece.bytes / region.row_bytes;
  for (size_t i = 0; i < piece.parts.size(); ++i) {
    if (region.split == Split::kRows) {  // small, so this piece has all its rows
      const Cut cut = CutOf(region, piece.ranks[i]);
      std::memcpy(piece.parts[i]->data, rows + cut.begin, static_cast<size_t>(cut.bytes));
      continue;
    }
    if (region.split == Split::kWhole) {
      std::memcpy(piece.parts[i]->data + piece.first * region.row_bytes, rows,
                  static_cast<size_t>(piece.bytes));
      continue;
    }
    const int64_t width = region.row_bytes / piece.ranks[i].count;
    const uint8_t* source = rows + piece.ranks[i].index * width;
    uint8_t* target = piece.parts[i]->data + piece.first * width;
    for (int64_t row = 0; row < num_rows; ++row) {
      std::memcpy(target, source, static_cast<size_t>(width));
      source += region.row_bytes;
      target += width;
    }
  }
}

}  // namespace ultraspeed::worker
