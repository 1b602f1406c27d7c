#include "worker/model/tensor_reader.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ultraspeed::worker {
namespace {

using kernels::CheckpointMatrix;
using kernels::WeightFormat;

constexpr int kBlock = 128;

int64_t Blocks(int count) { return (count + kBlock - 1) / kBlock; }
size_t Product(int64_t a, int64_t b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }

// Index of the first byte for which `bad` holds, or `count`.
template <typename T, typename Bad>
size_t FirstBad(const T* values, size_t count, Bad bad) {
  for (size_t i = 0; i < count; ++i) {
    if (bad(values[i])) return i;
  }
  return count;
}

bool IsNanE4m3(uint8_t code) { return (code & 0x7F) == 0x7F; }

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

void StoredMatrix::AppendRows(const StoredMatrix& rows) {
  if (rows.empty()) return;
  view_.format = rows.view_.format;
  view_.num_cols = rows.view_.num_cols;
  view_.num_rows += rows.view_.num_rows;
  bf16_codes_.insert(bf16_codes_.end(), rows.bf16_codes_.begin(), rows.bf16_codes_.end());
  view_.codes = bf16_codes_.data();
}

void TensorReader::Refuse(const std::string& name, size_t index, const std::string& what) {
  if (!status_.ok()) return;
  status_ =
      absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": element ", index, " ", what));
}

const uint8_t* TensorReader::Take(const std::string& name, std::string_view dtype,
                                  const std::vector<int64_t>& shape) {
  if (!status_.ok()) return nullptr;
  absl::StatusOr<TensorView> tensor = checkpoint_.Take(name, dtype, shape);
  if (!tensor.ok()) {
    status_ = tensor.status();
    return nullptr;
  }
  return tensor->data;
}

std::vector<kernels::bf16> TensorReader::Bf16(const std::string& name, int rows, int cols) {
  std::vector<int64_t> shape = {rows};
  if (cols > 0) shape.push_back(cols);
  const uint8_t* data = Take(name, "BF16", shape);
  if (data == nullptr) return {};
  std::vector<kernels::bf16> values(Product(rows, cols > 0 ? cols : 1));
  std::memcpy(values.data(), data,
              values.size() * sizeof(kernels::bf16));  // the file promises no alignment
  const size_t bad = FirstBad(values.data(), values.size(),
                              [](kernels::bf16 v) { return (v & 0x7F80) == 0x7F80; });
  if (bad < values.size()) Refuse(name, bad, "is not finite");
  return values;
}

std::vector<float> TensorReader::Bf16AsFloat(const std::string& name, int count) {
  const std::vector<kernels::bf16> values = Bf16(name, count, 0);
  std::vector<float> floats(values.size());
  for (size_t i = 0; i < values.size(); ++i) floats[i] = kernels::FromBf16(values[i]);
  return floats;
}

std::vector<float> TensorReader::F32(const std::string& name, const std::vector<int64_t>& shape) {
  const uint8_t* data = Take(name, "F32", shape);
  if (data == nullptr) return {};
  size_t count = 1;
  for (const int64_t dimension : shape) count *= static_cast<size_t>(dimension);
  std::vector<float> values(count);
  std::memcpy(values.data(), data, count * sizeof(float));
  const size_t bad = FirstBad(values.data(), count, [](float v) { return !std::isfinite(v); });
  if (bad < count) Refuse(name, bad, "is not finite");
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
  std::vector<kernels::bf16> values = Bf16(name, rows, cols);
  if (!status_.ok()) return {};
  StoredMatrix matrix(CheckpointMatrix{.format = WeightFormat::kBf16,
                                       .num_rows = rows,
                                       .num_cols = cols,
                                       .codes = nullptr,
                                       .scales_f32 = nullptr,
                                       .scales_e8m0 = nullptr});
  matrix.OwnCodes(std::move(values));
  return matrix;
}

StoredMatrix TensorReader::Fp8Matrix(const std::string& name, int rows, int cols) {
  return GroupedFp8Matrix(name, 1, rows, cols);
}

StoredMatrix TensorReader::GroupedFp8Matrix(const std::string& name, int groups, int group_rows,
                                            int cols) {
  const uint8_t* codes = Take(name, "F8_E4M3", {int64_t{groups} * group_rows, cols});
  const int64_t group_blocks = Blocks(group_rows);
  std::vector<float> scales = F32(name + "_scale_inv", {groups * group_blocks, Blocks(cols)});
  if (!status_.ok()) return {};
  const size_t count = Product(int64_t{groups} * group_rows, cols);
  const size_t bad = FirstBad(codes, count, IsNanE4m3);
  if (bad < count) {
    Refuse(name, bad, "is an FP8 NaN");
    return {};
  }
  const int64_t padded_rows = groups > 1 ? group_blocks * kBlock : group_rows;
  StoredMatrix matrix(CheckpointMatrix{.format = WeightFormat::kFp8Block128,
                                       .num_rows = static_cast<int>(groups * padded_rows),
                                       .num_cols = cols,
                                       .codes = codes,
                                       .scales_f32 = nullptr,
                                       .scales_e8m0 = nullptr});
  matrix.OwnScales(std::move(scales));
  if (padded_rows != group_rows) {
    std::vector<uint8_t> padded(Product(groups * padded_rows, cols), 0);
    for (int group = 0; group < groups; ++group) {
      std::memcpy(padded.data() + Product(group * padded_rows, cols),
                  codes + Product(int64_t{group} * group_rows, cols), Product(group_rows, cols));
    }
    matrix.OwnCodes(std::move(padded));
  }
  return matrix;
}

StoredMatrix TensorReader::Mxfp4Matrix(const std::string& name, int rows, int cols) {
  const uint8_t* codes = Take(name, "U8", {rows, cols / 2});
  const uint8_t* scales = Take(name + "_scale", "U8", {rows, cols / 32});
  if (!status_.ok()) return {};
  const size_t count = Product(rows, cols / 32);
  const size_t bad = FirstBad(scales, count, [](uint8_t scale) { return scale == 255; });
  if (bad < count) {
    Refuse(name + "_scale", bad, "is 255, which is NaN in E8M0; must be at most 254");
    return {};
  }
  return StoredMatrix(CheckpointMatrix{.format = WeightFormat::kMxfp4,
                                       .num_rows = rows,
                                       .num_cols = cols,
                                       .codes = codes,
                                       .scales_f32 = nullptr,
                                       .scales_e8m0 = scales});
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

}  // namespace ultraspeed::worker
