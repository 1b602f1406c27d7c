#include "worker/model/tensor_reader.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/usable_cores.h"

namespace ultraspeed::worker {
namespace {

using kernels::CheckpointMatrix;
using kernels::WeightFormat;

constexpr int kBlock = 128;
constexpr int kRoundingThreadsMax = 16;
constexpr int64_t kReportBytes = int64_t{64} << 20;

int64_t Blocks(int count) { return (count + kBlock - 1) / kBlock; }
size_t Product(int64_t a, int64_t b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }

// The first value for which `bad` holds, or `end`. In blocks without an early end, which compilers
// turn into vector code: a rank of the served model scans some 7 GB.
template <typename T, typename Bad>
const T* FindBad(const T* values, const T* end, Bad bad) {
  constexpr ptrdiff_t kBlockValues = 4096;
  while (values < end) {
    const T* const block_end = values + std::min(kBlockValues, end - values);
    unsigned any = 0;
    for (const T* value = values; value < block_end; ++value) any |= bad(*value) ? 1u : 0u;
    if (any != 0) return std::find_if(values, block_end, bad);
    values = block_end;
  }
  return end;
}

// Objects, not functions, so that FindBad becomes vector code for each.
constexpr auto kIsNotFiniteBf16 = [](kernels::bf16 value) { return (value & 0x7F80) == 0x7F80; };
constexpr auto kIsNotFiniteFloat = [](float value) { return !std::isfinite(value); };
constexpr auto kIsNanE4m3 = [](uint8_t code) { return (code & 0x7F) == 0x7F; };

}  // namespace

void StoredMatrix::OwnCodes(std::vector<uint8_t> codes) {
  codes_ = std::move(codes);
  view_.codes = codes_.data();
}

void StoredMatrix::OwnCodes(std::vector<kernels::bf16> codes) {
  bf16_codes_ = std::move(codes);
  view_.codes = bf16_codes_.data();
}

void StoredMatrix::OwnScales(std::vector<float> scales) {
  scales_ = std::move(scales);
  view_.scales_f32 = scales_.data();
}

void StoredMatrix::OwnE8m0Scales(std::vector<uint8_t> scales) {
  e8m0_scales_ = std::move(scales);
  view_.scales_e8m0 = e8m0_scales_.data();
}

void StoredMatrix::AppendRows(const StoredMatrix& rows) {
  if (rows.empty()) return;
  view_.format = rows.view_.format;
  view_.num_cols = rows.view_.num_cols;
  if (bf16_codes_.empty() && !empty()) {
    const auto* const own = static_cast<const kernels::bf16*>(view_.codes);
    bf16_codes_.assign(own, own + Product(view_.num_rows, view_.num_cols));
    leases_.clear();
  }
  view_.num_rows += rows.view_.num_rows;
  const auto* const codes = static_cast<const kernels::bf16*>(rows.view_.codes);
  bf16_codes_.insert(bf16_codes_.end(), codes,
                     codes + Product(rows.view_.num_rows, rows.view_.num_cols));
  view_.codes = bf16_codes_.data();
}

void TensorReader::Part::CopyTo(void* out) const {
  if (contiguous()) {
    std::memcpy(out, data, bytes());
    return;
  }
  const auto row_bytes = static_cast<size_t>(row_elements * element_bytes);
  const auto stride = static_cast<size_t>(stride_elements * element_bytes);
  for (size_t row = 0; row < static_cast<size_t>(num_rows); ++row)
    std::memcpy(static_cast<uint8_t*>(out) + row * row_bytes, data + row * stride, row_bytes);
}

size_t TensorReader::Part::StoredIndex(size_t element) const {
  const auto width = static_cast<size_t>(row_elements);
  return static_cast<size_t>(first_element) +
         element / width * static_cast<size_t>(stored_row_elements) + element % width;
}

TensorReader::Part TensorReader::Take(const std::string& name, std::string_view dtype,
                                      const std::vector<int64_t>& shape) {
  if (!status_.ok()) return {};
  const Split split = rank_.count == 1 ? Split::kWhole : SplitOf(name);
  std::vector<int64_t> stored = shape;
  if (split == Split::kRows) stored.front() *= rank_.count;
  if (split == Split::kColumns) stored.back() *= rank_.count;
  absl::StatusOr<TensorView> tensor = checkpoint_.Take(name, dtype, stored);
  if (!tensor.ok()) {
    status_ = tensor.status();
    return {};
  }
  Part part;
  part.num_rows = shape.front();
  part.row_elements = shape.size() > 1 ? shape[1] : 1;
  part.stored_row_elements = stored.size() > 1 ? stored[1] : 1;
  if (split == Split::kRows)
    part.first_element = rank_.index * part.num_rows * part.stored_row_elements;
  if (split == Split::kColumns) part.first_element = rank_.index * part.row_elements;
  part.element_bytes = static_cast<int>(
      tensor->bytes / static_cast<size_t>(stored.front() * part.stored_row_elements));
  if (stream_ == nullptr) {
    part.data = tensor->data + part.first_element * part.element_bytes;
    part.stride_elements = part.stored_row_elements;
  } else {
    absl::StatusOr<StagedPart> staged = stream_->Next(rank_.index);
    if (!staged.ok()) {
      status_ = staged.status();
      return {};
    }
    KERNELS_CHECK(staged->bytes, ==, part.bytes());
    part.data = staged->data;
    part.stride_elements = part.row_elements;
    part.lease = std::move(staged->lease);
  }
  bytes_taken_ += static_cast<int64_t>(part.bytes());
  if (report_ && bytes_taken_ >= bytes_reported_ + kReportBytes) {
    bytes_reported_ = bytes_taken_;
    report_(bytes_taken_);
  }
  return part;
}

const uint8_t* TensorReader::Codes(const Part& part, std::vector<uint8_t>& gathered) {
  if (part.data == nullptr || part.contiguous()) return part.data;
  gathered.resize(part.bytes());
  part.CopyTo(gathered.data());
  return gathered.data();
}

template <typename T>
const T* TensorReader::Aligned(const Part& part, std::vector<T>& copied) {
  if (part.contiguous() && reinterpret_cast<uintptr_t>(part.data) % alignof(T) == 0)
    return reinterpret_cast<const T*>(part.data);
  copied.resize(part.num_elements());
  part.CopyTo(copied.data());
  return copied.data();
}

template <typename T, typename Bad>
void TensorReader::RefuseFirst(const std::string& name, const Part& part, const T* values, Bad bad,
                               const char* what) {
  if (!status_.ok()) return;
  const T* const end = values + part.num_elements();
  const T* const found = FindBad(values, end, bad);
  if (found == end) return;
  status_ = absl::InvalidArgumentError(
      absl::StrCat("tensor ", name, ": element ",
                   part.StoredIndex(static_cast<size_t>(found - values)), " ", what));
}

std::vector<kernels::bf16> TensorReader::Bf16(const std::string& name, int rows, int cols) {
  std::vector<int64_t> shape = {rows};
  if (cols > 0) shape.push_back(cols);
  const Part part = Take(name, "BF16", shape);
  if (part.data == nullptr) return {};
  std::vector<kernels::bf16> values(part.num_elements());
  part.CopyTo(values.data());  // the file promises no alignment
  RefuseFirst(name, part, values.data(), kIsNotFiniteBf16, "is not finite");
  return values;
}

std::vector<float> TensorReader::Bf16AsFloat(const std::string& name, int count) {
  const std::vector<kernels::bf16> values = Bf16(name, count, 0);
  std::vector<float> floats(values.size());
  for (size_t i = 0; i < values.size(); ++i) floats[i] = kernels::FromBf16(values[i]);
  return floats;
}

std::vector<float> TensorReader::F32(const std::string& name, const std::vector<int64_t>& shape) {
  const Part part = Take(name, "F32", shape);
  if (part.data == nullptr) return {};
  std::vector<float> values(part.num_elements());
  part.CopyTo(values.data());
  RefuseFirst(name, part, values.data(), kIsNotFiniteFloat, "is not finite");
  return values;
}

std::vector<float> TensorReader::Router(const std::string& name, int rows, int cols) {
  if (status_.ok() && checkpoint_.DtypeOf(name) == "BF16") {
    const std::vector<kernels::bf16> values = Bf16(name, rows, cols);
    std::vector<float> floats(values.size());
    for (size_t i = 0; i < values.size(); ++i) floats[i] = kernels::FromBf16(values[i]);
    return floats;
  }
  return F32(name, {rows, cols});
}

StoredMatrix TensorReader::Bf16Matrix(const std::string& name, int rows, int cols) {
  const Part part = Take(name, "BF16", {rows, cols});
  if (part.data == nullptr) return {};
  std::vector<kernels::bf16> copied;
  const kernels::bf16* const values = Aligned(part, copied);
  RefuseFirst(name, part, values, kIsNotFiniteBf16, "is not finite");
  if (!status_.ok()) return {};
  StoredMatrix matrix(CheckpointMatrix{.format = WeightFormat::kBf16,
                                       .num_rows = rows,
                                       .num_cols = cols,
                                       .codes = values,
                                       .scales_f32 = nullptr,
                                       .scales_e8m0 = nullptr});
  if (!copied.empty()) {
    matrix.OwnCodes(std::move(copied));
  } else if (part.lease != nullptr) {
    matrix.Lease(part.lease);
  }
  return matrix;
}

std::pair<StoredMatrix, StoredMatrix> TensorReader::Bf16MatrixPair(const std::string& name,
                                                                   int rows, int first_cols,
                                                                   int second_cols) {
  const int whole_cols = first_cols + second_cols;
  const std::vector<kernels::bf16> whole = Bf16(name, rows, whole_cols);
  if (whole.empty()) return {};
  const auto columns = [&](int begin, int count) {
    std::vector<kernels::bf16> codes;
    for (auto row = whole.begin(); row != whole.end(); row += whole_cols)
      codes.insert(codes.end(), row + begin, row + begin + count);
    StoredMatrix matrix(CheckpointMatrix{.format = WeightFormat::kBf16,
                                         .num_rows = rows,
                                         .num_cols = count,
                                         .codes = nullptr,
                                         .scales_f32 = nullptr,
                                         .scales_e8m0 = nullptr});
    matrix.OwnCodes(std::move(codes));
    return matrix;
  };
  return {columns(0, first_cols), columns(first_cols, second_cols)};
}

StoredMatrix TensorReader::Fp8Matrix(const std::string& name, int rows, int cols) {
  return GroupedFp8Matrix(name, 1, rows, cols);
}

StoredMatrix TensorReader::GroupedFp8Matrix(const std::string& name, int groups, int group_rows,
                                            int cols) {
  const Part part = Take(name, "F8_E4M3", {int64_t{groups} * group_rows, cols});
  const int64_t group_blocks = Blocks(group_rows);
  const std::string scale_name = name + "_scale_inv";
  const Part scale_part = Take(scale_name, "F32", {groups * group_blocks, Blocks(cols)});
  if (!status_.ok()) return {};
  std::vector<float> copied;
  const float* const scales = Aligned(scale_part, copied);
  RefuseFirst(scale_name, scale_part, scales, kIsNotFiniteFloat, "is not finite");
  std::vector<uint8_t> gathered;
  const uint8_t* const codes = Codes(part, gathered);
  RefuseFirst(name, part, codes, kIsNanE4m3, "is an FP8 NaN");
  if (!status_.ok()) return {};
  const int64_t padded_rows = groups > 1 ? group_blocks * kBlock : group_rows;
  StoredMatrix matrix(CheckpointMatrix{.format = WeightFormat::kFp8Block128,
                                       .num_rows = static_cast<int>(groups * padded_rows),
                                       .num_cols = cols,
                                       .codes = codes,
                                       .scales_f32 = scales,
                                       .scales_e8m0 = nullptr});
  if (!copied.empty()) {
    matrix.OwnScales(std::move(copied));
  } else if (scale_part.lease != nullptr) {
    matrix.Lease(scale_part.lease);
  }
  if (padded_rows != group_rows) {
    std::vector<uint8_t> padded(Product(groups * padded_rows, cols), 0);
    for (int group = 0; group < groups; ++group) {
      std::memcpy(padded.data() + Product(group * padded_rows, cols),
                  codes + Product(int64_t{group} * group_rows, cols), Product(group_rows, cols));
    }
    matrix.OwnCodes(std::move(padded));
  } else if (!gathered.empty()) {
    matrix.OwnCodes(std::move(gathered));
  } else if (part.lease != nullptr) {
    matrix.Lease(part.lease);
  }
  return matrix;
}

StoredMatrix TensorReader::Mxfp4Matrix(const std::string& name, int rows, int cols) {
  const Part codes = Take(name, "U8", {rows, cols / 2});
  const Part scales = Take(name + "_scale", "U8", {rows, cols / 32});
  if (!status_.ok()) return {};
  std::vector<uint8_t> gathered_codes, gathered_scales;
  StoredMatrix matrix(CheckpointMatrix{.format = WeightFormat::kMxfp4,
                                       .num_rows = rows,
                                       .num_cols = cols,
                                       .codes = Codes(codes, gathered_codes),
                                       .scales_f32 = nullptr,
                                       .scales_e8m0 = Codes(scales, gathered_scales)});
  RefuseFirst(
      name + "_scale", scales, matrix.view().scales_e8m0,
      [](uint8_t scale) { return scale == 255; },
      "is 255, which is NaN in E8M0; must be at most 254");
  if (!status_.ok()) return {};
  if (!gathered_codes.empty()) matrix.OwnCodes(std::move(gathered_codes));
  if (!gathered_scales.empty()) matrix.OwnE8m0Scales(std::move(gathered_scales));
  for (const Part* part : {&codes, &scales}) {
    if (part->lease != nullptr) matrix.Lease(part->lease);
  }
  return matrix;
}

StoredMatrix TensorReader::Matrix(WeightFormat format, const std::string& name, int rows,
                                  int cols) {
  switch (format) {
    case WeightFormat::kBf16:
      return Bf16Matrix(name, rows, cols);
    case WeightFormat::kFp8Block128:
      return Fp8Matrix(name, rows, cols);
    case WeightFormat::kMxfp4:
      return Mxfp4Matrix(name, rows, cols);
  }
  return {};
}

StoredMlp TensorReader::Mlp(WeightFormat format, const std::string& prefix, int ffn_width,
                            int hidden) {
  StoredMlp mlp;
  mlp.gate = Matrix(format, prefix + "gate_proj.weight", ffn_width, hidden);
  mlp.up = Matrix(format, prefix + "up_proj.weight", ffn_width, hidden);
  mlp.down = Matrix(format, prefix + "down_proj.weight", hidden, ffn_width);
  return mlp;
}

StoredMlp TensorReader::Expert(const ModelConfig& config, const std::string& prefix) {
  StoredMlp expert =
      Mlp(config.stored_expert_format(), prefix, config.expert_ffn_width, config.hidden);
  if (!config.requantize_experts || !status_.ok()) return expert;
  for (StoredMatrix* matrix : {&expert.gate, &expert.up, &expert.down}) *matrix = Rounded(*matrix);
  return expert;
}

StoredMatrix TensorReader::Rounded(const StoredMatrix& fp8) {
  if (pool_ == nullptr) {
    pool_ = std::make_unique<kernels::ThreadPool>(
        std::clamp(kernels::NumUsableCores() / rank_.count, 1, kRoundingThreadsMax));
  }
  const size_t count = Product(fp8.view().num_rows, fp8.view().num_cols);
  std::vector<uint8_t> codes(count / 2), scales(count / 32);
  const kernels::RoundingError error =
      kernels::QuantizeToMxfp4(*pool_, fp8.view(), codes.data(), scales.data());
  rounding_error_.error += error.error;
  rounding_error_.signal += error.signal;
  StoredMatrix rounded(CheckpointMatrix{.format = WeightFormat::kMxfp4,
                                        .num_rows = fp8.view().num_rows,
                                        .num_cols = fp8.view().num_cols,
                                        .codes = nullptr,
                                        .scales_f32 = nullptr,
                                        .scales_e8m0 = nullptr});
  rounded.OwnCodes(std::move(codes));
  rounded.OwnE8m0Scales(std::move(scales));
  return rounded;
}

}  // namespace ultraspeed::worker
