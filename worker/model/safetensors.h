// One .safetensors file, mapped read-only: its tensors by name, each checked to lie inside the file
// and beside no other's bytes.
//
// Caller: checkpoint.cc. The bytes stay where the file has them, with no alignment promised; the
// header is read once and is hostile until checked. Thread: immutable after Open.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ultraspeed::worker {

inline constexpr int64_t kSafetensorsHeaderBytesMax = 100LL << 20;

struct TensorView {
  std::string name;
  std::string dtype;  // as written in the file: "BF16", "F32", "F8_E4M3", "U8", ...
  std::vector<int64_t> shape;
  const uint8_t* data = nullptr;  // inside the mapping
  uint64_t file_offset = 0;       // of data
  size_t bytes = 0;
};

class SafetensorsFile {
 public:
  // NOT_FOUND or INVALID_ARGUMENT names the file and, where there is one, the tensor.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::vector<TensorView>& tensors() const { return tensors_; }  // by offset

 private:
  explicit SafetensorsFile(std::string path) : path_(std::move(path)) {}
  absl::Status Map();
  absl::Status ReadHeader();

  std::string path_;
  const uint8_t* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
  std::vector<TensorView> tensors_;
};

// "BF16 [4, 32]", for messages.
std::string ShapeName(const std::string& dtype, const std::vector<int64_t>& shape);

}  // namespace ultraspeed::worker
