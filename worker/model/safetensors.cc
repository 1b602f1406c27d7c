#include "worker/model/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "worker/model/json_file.h"

namespace ultraspeed::worker {
namespace {

namespace json = boost::json;

constexpr size_t kLengthBytes = 8;
constexpr size_t kDimensionsMax = 8;

int ElementBytes(const std::string& dtype) {
  if (dtype == "U8" || dtype == "I8" || dtype == "BOOL" || dtype == "F8_E4M3" ||
      dtype == "F8_E5M2" || dtype == "F8_E8M0") {
    return 1;
  }
  if (dtype == "BF16" || dtype == "F16" || dtype == "I16" || dtype == "U16") return 2;
  if (dtype == "F32" || dtype == "I32" || dtype == "U32") return 4;
  if (dtype == "F64" || dtype == "I64" || dtype == "U64") return 8;
  return 0;
}

absl::Status Damaged(const std::string& path, const std::string& tensor, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", tensor, ": ", what));
}

// A header's numbers are unsigned; Boost.JSON yields int64 for all that fit.
bool AsSize(const json::value& value, uint64_t* out) {
  if (value.is_int64() && value.get_int64() >= 0) {
    *out = static_cast<uint64_t>(value.get_int64());
    return true;
  }
  if (value.is_uint64()) {
    *out = value.get_uint64();
    return true;
  }
  return false;
}

// One header entry. `data_bytes` is what follows the header; offsets count from there.
absl::Status ParseTensor(const std::string& path, const std::string& name, const json::value& value,
                         uint64_t data_bytes, TensorView& tensor, uint64_t& begin) {
  if (!value.is_object()) return Damaged(path, name, "its entry must be an object");
  const json::object& entry = value.get_object();
  const json::value* dtype = entry.if_contains("dtype");
  const json::value* shape = entry.if_contains("shape");
  const json::value* offsets = entry.if_contains("data_offsets");
  if (dtype == nullptr || !dtype->is_string() || shape == nullptr || !shape->is_array() ||
      offsets == nullptr || !offsets->is_array() || offsets->get_array().size() != 2) {
    return Damaged(path, name, "needs dtype, shape and data_offsets of two numbers");
  }
  tensor.name = name;
  tensor.dtype = std::string(dtype->get_string().c_str(), dtype->get_string().size());
  const int element_bytes = ElementBytes(tensor.dtype);
  if (element_bytes == 0) {
    return Damaged(path, name,
                   absl::StrCat("dtype \"", tensor.dtype.substr(0, 32), "\" is unknown"));
  }
  if (shape->get_array().size() > kDimensionsMax) {
    return Damaged(
        path, name,
        absl::StrCat("has ", shape->get_array().size(), " dimensions; at most ", kDimensionsMax));
  }
  uint64_t bytes = static_cast<uint64_t>(element_bytes);
  for (const json::value& dimension : shape->get_array()) {
    uint64_t size = 0;
    if (!AsSize(dimension, &size) || size > INT64_MAX ||
        __builtin_mul_overflow(bytes, size, &bytes)) {
      return Damaged(path, name,
                     absl::StrCat("shape ", json::serialize(*shape).substr(0, 100),
                                  " is negative or overflows"));
    }
    tensor.shape.push_back(static_cast<int64_t>(size));
  }
  uint64_t end = 0;
  if (!AsSize(offsets->get_array()[0], &begin) || !AsSize(offsets->get_array()[1], &end) ||
      begin > end || end > data_bytes) {
    return Damaged(path, name,
                   absl::StrCat("data_offsets ", json::serialize(*offsets),
                                " must ascend and end by ", data_bytes));
  }
  if (end - begin != bytes) {
    return Damaged(path, name,
                   absl::StrCat("has ", end - begin, " bytes of data; ",
                                ShapeName(tensor.dtype, tensor.shape), " takes ", bytes));
  }
  tensor.bytes = static_cast<size_t>(bytes);
  return absl::OkStatus();
}

}  // namespace

std::string ShapeName(const std::string& dtype, const std::vector<int64_t>& shape) {
  return absl::StrCat(dtype, " [", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(path));
  if (absl::Status status = file->Map(); !status.ok()) return status;
  if (absl::Status status = file->ReadHeader(); !status.ok()) return status;
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (mapping_ != nullptr) munmap(const_cast<uint8_t*>(mapping_), mapping_bytes_);
}

absl::Status SafetensorsFile::Map() {
  const int fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::NotFoundError(absl::StrCat(path_, ": ", std::strerror(errno)));
  struct stat info = {};
  const bool regular = fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  if (!regular || info.st_size < static_cast<off_t>(kLengthBytes)) {
    close(fd);
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": must be a file of at least ", kLengthBytes, " bytes"));
  }
  mapping_bytes_ = static_cast<size_t>(info.st_size);
  void* mapping = mmap(nullptr, mapping_bytes_, PROT_READ, MAP_PRIVATE, fd, 0);
  const int error = errno;
  close(fd);
  if (mapping == MAP_FAILED) {
    return absl::UnavailableError(
        absl::StrCat(path_, ": cannot be mapped: ", std::strerror(error)));
  }
  mapping_ = static_cast<const uint8_t*>(mapping);
  return absl::OkStatus();
}

absl::Status SafetensorsFile::ReadHeader() {
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, mapping_, kLengthBytes);
  const uint64_t header_bytes_max =
      std::min<uint64_t>(kSafetensorsHeaderBytesMax, mapping_bytes_ - kLengthBytes);
  if (header_bytes > header_bytes_max) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": header length is ", header_bytes,
                                                   "; at most ", header_bytes_max, " is possible"));
  }
  const std::string_view text(reinterpret_cast<const char*>(mapping_) + kLengthBytes, header_bytes);
  absl::StatusOr<json::object> header = ParseJsonObject(absl::StrCat(path_, ": header"), text);
  if (!header.ok()) return header.status();

  const uint8_t* data = mapping_ + kLengthBytes + header_bytes;
  const uint64_t data_bytes = mapping_bytes_ - kLengthBytes - header_bytes;
  for (const auto& entry : *header) {
    const std::string name(entry.key().data(), entry.key().size());
    if (name == "__metadata__") continue;
    TensorView tensor;
    uint64_t begin = 0;
    if (absl::Status s = ParseTensor(path_, name, entry.value(), data_bytes, tensor, begin);
        !s.ok()) {
      return s;
    }
    tensor.data = data + begin;
    tensor.file_offset = static_cast<uint64_t>(tensor.data - mapping_);
    tensors_.push_back(std::move(tensor));
  }
  std::sort(tensors_.begin(), tensors_.end(), [](const TensorView& a, const TensorView& b) {
    return a.data != b.data ? a.data < b.data : a.bytes < b.bytes;
  });
  for (size_t i = 1; i < tensors_.size(); ++i) {
    const TensorView& left = tensors_[i - 1];
    if (left.data + left.bytes > tensors_[i].data) {
      return Damaged(path_, tensors_[i].name, absl::StrCat("overlaps tensor ", left.name));
    }
  }
  return absl::OkStatus();
}

}  // namespace ultraspeed::worker
