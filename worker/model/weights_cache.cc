#include "worker/model/weights_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "worker/model/checksum.h"

namespace ultraspeed::worker {
namespace {

namespace fs = std::filesystem;

constexpr char kMagic[] = "USWEIGHT";  // 8 bytes without the end
constexpr int kFormat = 1;
constexpr size_t kTextBytesMax = 4096;
constexpr auto kAlign = static_cast<int64_t>(kReadAlignment);

struct Preamble {
  char magic[8];
  uint32_t text_bytes;
  uint32_t zero;
  uint64_t checksum;
};
static_assert(sizeof(Preamble) == 24);

int64_t RoundUp(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

int64_t NumChunks(int64_t payload_bytes) {
  return (payload_bytes + kCacheChunkBytes - 1) / kCacheChunkBytes;
}

int64_t PayloadOffset(size_t text_bytes, int64_t payload_bytes) {
  return RoundUp(static_cast<int64_t>(sizeof(Preamble) + text_bytes) +
                 NumChunks(payload_bytes) * static_cast<int64_t>(sizeof(uint64_t)));
}

// Closes a file, which ends its lock too.
class OpenFile {
 public:
  explicit OpenFile(int fd) : fd_(fd) {}
  ~OpenFile() {
    if (fd_ >= 0) close(fd_);
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  int fd() const { return fd_; }

 private:
  const int fd_;
};

absl::Status Damaged(const std::string& path, const std::string& what) {
  return absl::DataLossError(absl::StrCat(path, ": damaged: ", what));
}

absl::Status Unwritable(const std::string& path, const char* what, int error) {
  const std::string text = absl::StrCat(path, ": ", what, ": ", std::strerror(error));
  if (error == ENOSPC || error == EDQUOT || error == EFBIG)
    return absl::ResourceExhaustedError(text);
  return absl::UnavailableError(text);
}

// The first line in which the two differ, for people.
std::string Difference(const std::string& got, const std::string& want) {
  const std::vector<std::string> got_lines = absl::StrSplit(got, '\n'),
                                 want_lines = absl::StrSplit(want, '\n');
  for (size_t i = 0; i < want_lines.size(); ++i) {
    const std::string line = i < got_lines.size() ? got_lines[i] : "";
    if (line != want_lines[i])
      return absl::StrCat("made for \"", line, "\"; needed is \"", want_lines[i], "\"");
  }
  return "has lines that are not known";
}

bool ReadAt(int fd, int64_t offset, void* out, size_t bytes) {
  auto* at = static_cast<uint8_t*>(out);
  for (size_t done = 0; done < bytes;) {
    const ssize_t count =
        pread(fd, at + done, bytes - done, static_cast<off_t>(offset) + static_cast<off_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    done += static_cast<size_t>(count);
  }
  return true;
}

// 0, or the error.
int WriteAt(int fd, int64_t offset, const void* data, size_t bytes) {
  const auto* at = static_cast<const uint8_t*>(data);
  for (size_t done = 0; done < bytes;) {
    const ssize_t count =
        pwrite(fd, at + done, bytes - done, static_cast<off_t>(offset) + static_cast<off_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno;
    done += static_cast<size_t>(count);
  }
  return 0;
}

uint64_t HeadChecksum(const std::string& text, const std::vector<uint64_t>& checksums) {
  return Checksum(checksums.data(), checksums.size() * sizeof(uint64_t),
                  Checksum(std::string_view(text)));
}

}  // namespace

std::string CacheIdentity::Text() const {
  return absl::StrCat("format ", kFormat, "\ncheckpoint ", checkpoint, "\nlayout ", layout,
                      "\nrank ", rank.index, " of ", rank.count, "\npayload_bytes ", payload_bytes,
                      "\nchunk_bytes ", kCacheChunkBytes, "\n");
}

absl::StatusOr<std::string> CheckpointFingerprint(const std::string& folder) {
  std::vector<std::string> names;
  for (const char* part : {"", "dflash/"}) {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(absl::StrCat(folder, "/", part), error)) {
      const std::string extension = entry.path().extension().string();
      if (extension == ".safetensors" || extension == ".json" || extension == ".pt")
        names.push_back(absl::StrCat(part, entry.path().filename().string()));
    }
    if (error && *part == '\0')
      return absl::NotFoundError(absl::StrCat(folder, ": ", error.message()));
  }
  std::sort(names.begin(), names.end());
  std::string text;
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(folder, "/", name);
    struct stat info = {};
    if (stat(path.c_str(), &info) != 0)
      return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(errno)));
    if (absl::EndsWith(name, ".safetensors")) {
      absl::StrAppend(&text, name, " ", info.st_size, " ", info.st_mtim.tv_sec, ".",
                      info.st_mtim.tv_nsec, "\n");
      continue;
    }
    std::ifstream file(path, std::ios::binary);
    std::ostringstream contents;
    contents << file.rdbuf();
    if (!file) return absl::UnavailableError(absl::StrCat(path, ": cannot be read"));
    absl::StrAppend(&text, name, " ", ChecksumName(Checksum(std::string_view(contents.str()))),
                    "\n");
  }
  return ChecksumName(Checksum(std::string_view(text)));
}

std::string CachePath(const std::string& cache_folder, const std::string& model,
                      const std::string& device, const Rank& rank) {
  return absl::StrFormat("%s/%s.%s.rank%d-of-%d.weights", cache_folder, model, device, rank.index,
                         rank.count);
}

absl::StatusOr<std::unique_ptr<WeightsCacheReader>> WeightsCacheReader::Open(
    const std::string& path, const CacheIdentity& identity, const ReadOptions& options,
    std::shared_ptr<StagingPool> pool) {
  const OpenFile file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.fd() < 0) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  Preamble preamble = {};
  if (!ReadAt(file.fd(), 0, &preamble, sizeof(preamble)) ||
      std::memcmp(preamble.magic, kMagic, sizeof(preamble.magic)) != 0 ||
      preamble.text_bytes > kTextBytesMax || preamble.zero != 0) {
    return Damaged(path, "it does not begin like a weights cache");
  }
  std::string text(preamble.text_bytes, '\0');
  if (!ReadAt(file.fd(), sizeof(preamble), text.data(), text.size()))
    return Damaged(path, "it ends within its head");
  const std::string wanted = identity.Text();
  if (text != wanted) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": stale: ", Difference(text, wanted)));
  }
  std::vector<uint64_t> checksums(static_cast<size_t>(NumChunks(identity.payload_bytes)));
  if (!ReadAt(file.fd(), static_cast<int64_t>(sizeof(preamble) + text.size()), checksums.data(),
              checksums.size() * sizeof(uint64_t))) {
    return Damaged(path, "it ends within its head");
  }
  if (const uint64_t sum = HeadChecksum(text, checksums); sum != preamble.checksum) {
    return Damaged(path, absl::StrCat("the checksum of its head is ", ChecksumName(sum),
                                      "; it says ", ChecksumName(preamble.checksum)));
  }
  const int64_t payload = PayloadOffset(text.size(), identity.payload_bytes);
  struct stat info = {};
  if (fstat(file.fd(), &info) != 0 || info.st_size != payload + identity.payload_bytes) {
    return Damaged(path, absl::StrCat("it has ", info.st_size, " bytes; its head calls for ",
                                      payload + identity.payload_bytes));
  }
  std::vector<FileRegion> regions;
  for (int64_t at = 0; at < identity.payload_bytes; at += kCacheChunkBytes) {
    regions.push_back({.offset = static_cast<uint64_t>(payload + at),
                       .row_bytes = std::min(kCacheChunkBytes, identity.payload_bytes - at)});
  }
  absl::StatusOr<std::unique_ptr<PartStream>> stream =
      PartStream::Open({path}, std::move(regions), {Rank{}}, options, std::move(pool));
  if (!stream.ok()) return stream.status();
  std::unique_ptr<WeightsCacheReader> reader(new WeightsCacheReader(path, std::move(checksums)));
  reader->stream_ = *std::move(stream);
  return reader;
}

absl::StatusOr<WeightsCacheReader::Chunk> WeightsCacheReader::Next() {
  absl::StatusOr<StagedPart> part = stream_->Next(0);
  if (!part.ok()) return part.status();
  const uint64_t sum = Checksum(part->data, part->bytes);
  if (sum != checksums_[next_]) {
    return Damaged(path_, absl::StrCat("the checksum of chunk ", next_, " of ", checksums_.size(),
                                       " is ", ChecksumName(sum), "; the head says ",
                                       ChecksumName(checksums_[next_])));
  }
  return Chunk{static_cast<int64_t>(next_++) * kCacheChunkBytes, *std::move(part)};
}

namespace {

// The file beside the cache's place, locked: no other process writes it, and none has just renamed
// it.
absl::Status LockTemporary(const std::string& path, int fd) {
  if (fd < 0) return Unwritable(path, "cannot be written", errno);
  struct stat of_fd = {}, of_path = {};
  if (flock(fd, LOCK_EX | LOCK_NB) != 0 || fstat(fd, &of_fd) != 0 ||
      stat(path.c_str(), &of_path) != 0 || of_fd.st_ino != of_path.st_ino) {
    return absl::UnavailableError(absl::StrCat(path, ": another process is writing it"));
  }
  return absl::OkStatus();
}

absl::Status CheckRoom(const std::string& folder, int64_t bytes) {
  struct statvfs space = {};
  if (statvfs(folder.c_str(), &space) != 0) return Unwritable(folder, "cannot be used", errno);
  const auto available = static_cast<double>(space.f_bavail) * static_cast<double>(space.f_frsize);
  if (available >= static_cast<double>(bytes)) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrFormat("%s: has %.2f GB free; the cache takes %.2f GB", folder, available / 1e9,
                      static_cast<double>(bytes) / 1e9));
}

// Payload chunks by several threads, past the page cache where the file system lets them.
class ChunkWriter {
 public:
  ChunkWriter(std::string path, int fd, int64_t payload_offset, int64_t payload_bytes,
              const std::function<void(int64_t, void*, int64_t)>& copy_out)
      : path_(std::move(path)),
        fd_(fd),
        payload_offset_(payload_offset),
        payload_bytes_(payload_bytes),
        copy_out_(copy_out),
        checksums_(static_cast<size_t>(NumChunks(payload_bytes))) {}

  absl::Status Run(int num_threads) {
    const OpenFile direct(open(path_.c_str(), O_WRONLY | O_CLOEXEC | O_DIRECT));
    const int fd = direct.fd() >= 0 ? direct.fd() : fd_;
    std::vector<std::thread> threads;
    for (int i = 1; i < num_threads; ++i) threads.emplace_back([&] { Work(fd); });
    Work(fd);
    for (std::thread& thread : threads) thread.join();
    if (error_ != 0) return Unwritable(path_, "cannot be written", error_);
    return absl::OkStatus();
  }
  const std::vector<uint64_t>& checksums() const { return checksums_; }

 private:
  void Work(int fd) {
    const std::unique_ptr<void, decltype(&std::free)> block(
        std::aligned_alloc(kReadAlignment, static_cast<size_t>(kCacheChunkBytes)), &std::free);
    auto* const bytes = static_cast<uint8_t*>(block.get());
    for (size_t i = next_++; i < checksums_.size() && error_ == 0; i = next_++) {
      const int64_t offset = static_cast<int64_t>(i) * kCacheChunkBytes;
      const int64_t count = std::min(kCacheChunkBytes, payload_bytes_ - offset);
      copy_out_(offset, bytes, count);
      checksums_[i] = Checksum(bytes, static_cast<size_t>(count));
      const int64_t padded = RoundUp(count);  // the file is cut to its length afterwards
      std::memset(bytes + count, 0, static_cast<size_t>(padded - count));
      if (const int error =
              WriteAt(fd, payload_offset_ + offset, bytes, static_cast<size_t>(padded));
          error != 0) {
        error_ = error;
      }
    }
  }

  const std::string path_;
  const int fd_;
  const int64_t payload_offset_;
  const int64_t payload_bytes_;
  const std::function<void(int64_t, void*, int64_t)>& copy_out_;
  std::vector<uint64_t> checksums_;  // each written by the thread that has its chunk
  std::atomic<size_t> next_{0};
  std::atomic<int> error_{0};
};

absl::Status WriteTemporary(const std::string& path, int fd, const CacheIdentity& identity,
                            int num_threads,
                            const std::function<void(int64_t, void*, int64_t)>& copy_out) {
  const std::string text = identity.Text();
  const int64_t payload = PayloadOffset(text.size(), identity.payload_bytes),
                total = payload + identity.payload_bytes;
  if (ftruncate(fd, 0) != 0) return Unwritable(path, "cannot be emptied", errno);
  if (fallocate(fd, 0, 0, static_cast<off_t>(total)) != 0 && errno != EOPNOTSUPP)
    return Unwritable(path, "no room", errno);
  ChunkWriter writer(path, fd, payload, identity.payload_bytes, copy_out);
  if (absl::Status status = writer.Run(num_threads); !status.ok()) return status;
  // The head comes last: without it nobody takes the file for whole.
  Preamble preamble = {.magic = {},
                       .text_bytes = static_cast<uint32_t>(text.size()),
                       .zero = 0,
                       .checksum = HeadChecksum(text, writer.checksums())};
  std::memcpy(preamble.magic, kMagic, sizeof(preamble.magic));
  std::string head(reinterpret_cast<const char*>(&preamble), sizeof(preamble));
  head += text;
  head.append(reinterpret_cast<const char*>(writer.checksums().data()),
              writer.checksums().size() * sizeof(uint64_t));
  head.resize(static_cast<size_t>(payload), '\0');
  if (const int error = WriteAt(fd, 0, head.data(), head.size()); error != 0)
    return Unwritable(path, "cannot be written", error);
  if (ftruncate(fd, static_cast<off_t>(total)) != 0)
    return Unwritable(path, "cannot be cut to its length", errno);
  if (fsync(fd) != 0) return Unwritable(path, "cannot be brought to the disk", errno);
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteWeightsCache(const std::string& path, const CacheIdentity& identity,
                               int num_threads,
                               const std::function<void(int64_t, void*, int64_t)>& copy_out) {
  const fs::path folder = fs::path(path).parent_path();
  std::error_code error;
  fs::create_directories(folder, error);
  const std::string temporary = path + ".tmp";
  const OpenFile file(open(temporary.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (absl::Status status = LockTemporary(temporary, file.fd()); !status.ok()) return status;
  unlink(path.c_str());
  absl::Status status = CheckRoom(folder.string(), identity.payload_bytes);
  if (status.ok()) status = WriteTemporary(temporary, file.fd(), identity, num_threads, copy_out);
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0)
    status = Unwritable(path, "cannot be put in its place", errno);
  if (!status.ok()) {
    unlink(temporary.c_str());
    return status;
  }
  const OpenFile parent(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (parent.fd() >= 0) fsync(parent.fd());
  return absl::OkStatus();
}

}  // namespace ultraspeed::worker
