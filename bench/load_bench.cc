#include "bench/load_bench.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/model/dropping_packer.h"
#include "worker/model/shared_reads.h"
#include "worker/model/weights_loader.h"

namespace ultraspeed::bench {
namespace {

namespace fs = std::filesystem;
using worker::DirectReads;

constexpr int64_t kPieceBytes = int64_t{4} << 20;

double Seconds(const std::function<absl::Status()>& work, absl::Status& status) {
  const auto start = std::chrono::steady_clock::now();
  status = work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct File {
  std::string path;
  int64_t bytes = 0;
};

std::vector<File> FilesIn(const std::string& folder, const std::string& extension) {
  std::vector<File> files;
  for (const char* part : {"", "/dflash"}) {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(folder + part, error)) {
      if (entry.path().extension() == extension)
        files.push_back({entry.path().string(), static_cast<int64_t>(entry.file_size())});
    }
  }
  std::sort(files.begin(), files.end(),
            [](const File& a, const File& b) { return a.path < b.path; });
  return files;
}

int64_t Bytes(const std::vector<File>& files) {
  int64_t bytes = 0;
  for (const File& file : files) bytes += file.bytes;
  return bytes;
}

// Written pages must reach the disk before they can be dropped.
void DropFromPageCache(const std::vector<File>& files) {
  for (const File& file : files) {
    const int fd = open(file.path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
  }
}

// All files in order, by pieces that the threads take in turn, into memory that is thrown away.
absl::Status ReadRaw(const std::vector<File>& files, int num_threads, bool direct) {
  std::vector<std::pair<int, int64_t>> pieces;  // descriptor, offset
  std::vector<int> descriptors;
  absl::Status status;
  for (const File& file : files) {
    const int fd = open(file.path.c_str(), O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0));
    if (fd < 0) {
      status = absl::UnavailableError(absl::StrCat(file.path, ": ", std::strerror(errno)));
      break;
    }
    descriptors.push_back(fd);
    for (int64_t at = 0; at < file.bytes; at += kPieceBytes) pieces.emplace_back(fd, at);
  }
  std::atomic<size_t> next{0};
  std::atomic<int> error{0};
  const auto work = [&] {
    const std::unique_ptr<void, decltype(&std::free)> block(
        std::aligned_alloc(worker::kReadAlignment, static_cast<size_t>(kPieceBytes)), &std::free);
    for (size_t i = next++; i < pieces.size() && error == 0; i = next++) {
      if (pread(pieces[i].first, block.get(), static_cast<size_t>(kPieceBytes),
                static_cast<off_t>(pieces[i].second)) < 0) {
        error = errno;
      }
    }
  };
  std::vector<std::thread> threads;
  if (status.ok()) {
    for (int i = 0; i < num_threads; ++i) threads.emplace_back(work);
  }
  for (std::thread& thread : threads) thread.join();
  for (const int fd : descriptors) close(fd);
  if (error != 0) status = absl::UnavailableError(std::strerror(error));
  return status;
}

absl::Status StreamOnly(const worker::ModelConfig& config, const worker::ExecutorOptions& options) {
  worker::SharedReads reads(options.num_ranks, options.reads);
  std::vector<absl::Status> statuses(static_cast<size_t>(options.num_ranks));
  std::vector<std::thread> threads;
  for (int index = 0; index < options.num_ranks; ++index) {
    threads.emplace_back([&, index] {
      worker::DroppingPacker drop;  // what was read and checked
      const worker::Rank rank = {.index = index, .count = options.num_ranks};
      statuses[static_cast<size_t>(index)] =
          worker::LoadModelWeightsWith(drop, options.model_folder, config,
                                       {.rank = rank, .shared = &reads})
              .status();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : statuses) RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

absl::Status MakeExecutor(worker::Device device, const worker::ExecutorOptions& options) {
  return worker::CreateExecutor(device, options).status();
}

struct Mode {
  const char* name;
  bool cold;
  DirectReads direct;
};
constexpr Mode kModes[] = {{"cold_cached", true, DirectReads::kNever},
                           {"cold_direct", true, DirectReads::kAlways},
                           {"warm_cached", false, DirectReads::kNever}};

}  // namespace

absl::StatusOr<boost::json::object> MeasureLoad(const LoadBenchOptions& options) {
  worker::ExecutorOptions executor = options.executor;
  executor.weights_cache.clear();
  ASSIGN_OR_RETURN(const worker::ModelConfig config,
                   worker::LoadModelConfig(executor.model_folder, executor.experts));
  const std::vector<File> files = FilesIn(executor.model_folder, ".safetensors");
  const auto gigabytes = static_cast<double>(Bytes(files)) / 1e9;
  if (files.empty())
    return absl::InvalidArgumentError(
        absl::StrCat(executor.model_folder, ": has no .safetensors file"));
  const int raw_threads = std::max(1, executor.reads.threads);
  boost::json::object report = {
      {"device", options.device == worker::Device::kCuda ? "cuda" : "cpu"},
      {"ranks", executor.num_ranks},
      {"files", files.size()},
      {"gigabytes", gigabytes},
      {"read_threads", executor.reads.threads}};
  const auto measure = [&](const std::string& name, bool cold, const std::vector<File>& read_files,
                           const std::function<absl::Status()>& work) -> absl::StatusOr<double> {
    if (cold) DropFromPageCache(read_files);
    absl::Status status;
    const double seconds = Seconds(work, status);
    RETURN_IF_ERROR(status);
    report[name + "_seconds"] = seconds;
    const double rate = static_cast<double>(Bytes(read_files)) / 1e9 / seconds;
    report[name + "_gb_per_second"] = rate;
    return rate;
  };
  for (const Mode& mode : kModes) {
    executor.reads.direct = mode.direct;
    const bool direct = mode.direct == DirectReads::kAlways;
    const std::string name = mode.name;
    if (!mode.cold) RETURN_IF_ERROR(ReadRaw(files, raw_threads, false));
    ASSIGN_OR_RETURN(const double raw, measure("raw_" + name, mode.cold, files, [&] {
                       return ReadRaw(files, raw_threads, direct);
                     }));
    if (executor.reads.threads > 0) {  // of mapped pages, it would not touch all
      ASSIGN_OR_RETURN(const double stream, measure("stream_" + name, mode.cold, files,
                                                    [&] { return StreamOnly(config, executor); }));
      report["stream_" + name + "_of_raw"] = stream / raw;
    }
    if (options.stream_only) continue;
    ASSIGN_OR_RETURN(const double load, measure("load_" + name, mode.cold, files, [&] {
                       return MakeExecutor(options.device, executor);
                     }));
    report["load_" + name + "_of_raw"] = load / raw;
  }
  if (options.executor.weights_cache.empty() || options.stream_only) return report;

  executor = options.executor;
  RETURN_IF_ERROR(measure("load_and_pack", true, files, [&] {
                    return MakeExecutor(options.device, executor);
                  }).status());
  const std::vector<File> packed = FilesIn(executor.weights_cache, ".weights");
  ASSIGN_OR_RETURN(const double raw, measure("raw_packed_direct", true, packed,
                                             [&] { return ReadRaw(packed, raw_threads, true); }));
  ASSIGN_OR_RETURN(const double load, measure("load_packed", true, packed, [&] {
                     return MakeExecutor(options.device, executor);
                   }));
  report["load_packed_of_raw"] = load / raw;
  return report;
}

}  // namespace ultraspeed::bench
