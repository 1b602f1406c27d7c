#include "worker/identity.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/config.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "worker/sha256.h"

namespace ultraspeed::worker {
namespace {

namespace fs = std::filesystem;

constexpr int kSamples = 64;
constexpr size_t kSampleBytes = 4096;

absl::Status AddSamples(const fs::path& path, Sha256& hash) {
  std::error_code error;
  const uint64_t num_bytes = fs::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  if (error || !file) return absl::NotFoundError(absl::StrCat(path.string(), ": cannot open"));
  hash.Add(absl::StrCat(num_bytes, "\n"));
  std::string sample(kSampleBytes, '\0');
  for (uint64_t i = 0; i < kSamples; ++i) {
    const uint64_t last = num_bytes > kSampleBytes ? num_bytes - kSampleBytes : 0;
    file.clear();
    file.seekg(static_cast<std::streamoff>(last / (kSamples - 1) * i));
    file.read(sample.data(), static_cast<std::streamsize>(sample.size()));
    hash.Add(absl::string_view(sample.data(), static_cast<size_t>(file.gcount())));
  }
  return absl::OkStatus();
}

// Paths relative to `folder`, sorted, of the files that make the model what it is.
std::vector<std::string> IdentityFiles(const fs::path& folder) {
  std::vector<std::string> names;
  for (const char* part : {"", "dflash"}) {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(folder / part, error)) {
      const std::string extension = entry.path().extension().string();
      const std::string stem = entry.path().filename().string();
      const bool is_tokenizer = absl::StartsWith(stem, "tokenizer");
      if (!is_tokenizer && (extension == ".safetensors" || extension == ".json")) {
        names.push_back(fs::relative(entry.path(), folder).string());
      }
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

absl::StatusOr<ModelIdentity> ReadModelIdentity(const std::string& folder) {
  ModelIdentity identity;
  const fs::path root(folder);
  ASSIGN_OR_RETURN(identity.tokenizer, ReadFile((root / "tokenizer.json").string(),
                                                limits::kTokenizerBytesMax, "tokenizer"));
  identity.tokenizer_sha256 = Sha256Hex(identity.tokenizer);
  Sha256 weights;
  for (const std::string& name : IdentityFiles(root)) {
    weights.Add(absl::StrCat(name, "\n"));
    if (absl::EndsWith(name, ".safetensors")) {
      RETURN_IF_ERROR(AddSamples(root / name, weights));
    } else {
      ASSIGN_OR_RETURN(const std::string text,
                       ReadFile((root / name).string(), limits::kTokenizerBytesMax, "model file"));
      weights.Add(text);
    }
  }
  identity.weights_sha256 = weights.Hex();
  return identity;
}

}  // namespace ultraspeed::worker
