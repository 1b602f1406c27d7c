#include "worker/manifest.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/config.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "worker/sha256.h"

namespace ultraspeed::worker {
namespace {

namespace fs = std::filesystem;

constexpr size_t kHexDigits = 64;
constexpr size_t kReadBytes = size_t{4} << 20;
constexpr int64_t kReportBytes = int64_t{64} << 20;

// Inside the folder, by no way round.
bool IsPlainPath(absl::string_view path) {
  if (path.empty() || path.front() == '/') return false;
  for (const absl::string_view part : absl::StrSplit(path, '/')) {
    if (part.empty() || part == "." || part == "..") return false;
  }
  return path.find('\0') == absl::string_view::npos;
}

// What loading reads.
std::set<std::string> CheckpointFiles(const fs::path& folder) {
  static const std::set<std::string> kExtensions = {".safetensors", ".json", ".pt"};
  std::set<std::string> names;
  for (const char* part : {"", "dflash"}) {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(folder / part, error)) {
      if (entry.is_regular_file() && kExtensions.count(entry.path().extension().string()) > 0)
        names.insert(fs::relative(entry.path(), folder).generic_string());
    }
  }
  return names;
}

// Adds up what all threads have read.
class Progress {
 public:
  Progress(int64_t bytes_total, const std::function<void(int64_t, int64_t)>& report)
      : bytes_total_(bytes_total), report_(report) {}

  void Add(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    bytes_done_ += bytes;
    if (!report_ || (bytes_done_ < reported_ + kReportBytes && bytes_done_ < bytes_total_)) return;
    reported_ = bytes_done_;
    report_(bytes_done_, bytes_total_);
  }

 private:
  const int64_t bytes_total_;
  const std::function<void(int64_t, int64_t)>& report_;
  std::mutex mutex_;
  int64_t bytes_done_ = 0;
  int64_t reported_ = 0;
};

absl::Status CheckFile(const std::string& path, const std::string& expected, Progress& progress) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  Sha256 hash;
  std::string piece(kReadBytes, '\0');
  while (file) {
    file.read(piece.data(), static_cast<std::streamsize>(piece.size()));
    const auto count = static_cast<size_t>(file.gcount());
    hash.Add(absl::string_view(piece.data(), count));
    progress.Add(static_cast<int64_t>(count));
  }
  if (file.bad()) return absl::UnavailableError(absl::StrCat(path, ": cannot be read"));
  const std::string sum = hash.Hex();
  if (sum == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": sha256 is ", sum, "; the manifest says ", expected));
}

}  // namespace

absl::StatusOr<std::map<std::string, std::string>> ParseManifest(const std::string& origin,
                                                                 absl::string_view text) {
  std::map<std::string, std::string> sums;
  int line_number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++line_number;
    line = absl::StripTrailingAsciiWhitespace(line);
    if (line.empty()) continue;
    const auto refuse = [&](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat(origin, ": line ", line_number, ": ", what));
    };
    // Two characters between: a space, then a space or, for binary mode, an asterisk.
    if (line.size() < kHexDigits + 3 || line[kHexDigits] != ' ' ||
        (line[kHexDigits + 1] != ' ' && line[kHexDigits + 1] != '*')) {
      return refuse("must be 64 hexadecimal digits, two spaces and a file");
    }
    const std::string sum = absl::AsciiStrToLower(line.substr(0, kHexDigits));
    if (!std::all_of(sum.begin(), sum.end(), [](char c) { return absl::ascii_isxdigit(c); }))
      return refuse("must begin with 64 hexadecimal digits");
    absl::string_view path = line.substr(kHexDigits + 2);
    if (path.substr(0, 2) == "./") path.remove_prefix(2);
    if (!IsPlainPath(path)) return refuse("the file must be a path inside the folder");
    if (!sums.emplace(std::string(path), sum).second)
      return refuse(absl::StrCat("names ", path, " for the second time"));
  }
  if (sums.empty()) return absl::InvalidArgumentError(absl::StrCat(origin, ": names no file"));
  return sums;
}

absl::Status CheckManifest(const std::string& folder, const std::string& manifest_path,
                           int num_threads, const std::function<void(int64_t, int64_t)>& progress) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFile(manifest_path, limits::kManifestBytesMax, "manifest"));
  ASSIGN_OR_RETURN(const auto sums, ParseManifest(manifest_path, text));
  for (const std::string& name : CheckpointFiles(folder)) {
    if (sums.count(name) == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(folder, "/", name, ": is not in the manifest ", manifest_path));
    }
  }
  // Large files first, so that the threads end together.
  std::vector<std::pair<int64_t, const std::pair<const std::string, std::string>*>> files;
  int64_t bytes_total = 0;
  for (const auto& entry : sums) {
    std::error_code error;
    const auto bytes = static_cast<int64_t>(fs::file_size(fs::path(folder) / entry.first, error));
    if (error) {
      return absl::NotFoundError(absl::StrCat(folder, "/", entry.first, ": is in the manifest ",
                                              manifest_path, ": ", error.message()));
    }
    files.emplace_back(bytes, &entry);
    bytes_total += bytes;
  }
  std::stable_sort(files.begin(), files.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });

  Progress all(bytes_total, progress);
  std::vector<absl::Status> statuses(files.size());
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&] {
    for (size_t i = next++; i < files.size() && !failed; i = next++) {
      const auto& [name, sum] = *files[i].second;
      statuses[i] = CheckFile(absl::StrCat(folder, "/", name), sum, all);
      if (!statuses[i].ok()) failed = true;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < num_threads; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace ultraspeed::worker
