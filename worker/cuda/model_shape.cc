#include "worker/cuda/model_shape.h"

#include <cmath>

#include "absl/strings/match.h"

namespace ultraspeed::worker::cuda {
namespace {

constexpr int kBlock = 128;

size_t Product(int64_t a, int64_t b) { return static_cast<size_t>(a * b); }

}  // namespace

void ShapedMatrix::AppendRows(const ShapedMatrix& rows) {
  view_.format = rows.view_.format;
  view_.num_cols = rows.view_.num_cols;
  view_.num_rows += rows.view_.num_rows;
}

// Norms scale by one; sinks are logits.
ShapedValues ShapeReader::Bf16AsFloat(const std::string& name, int count) const {
  const bool is_sink = absl::StrContains(name, "sink");
  return {static_cast<size_t>(count), is_sink ? 0.0f : 1.0f, is_sink ? 1.0f : 0.0f};
}

// The router's bias.
ShapedValues ShapeReader::F32(const std::string& /*name*/,
                              const std::vector<int64_t>& shape) const {
  size_t count = 1;
  for (const int64_t dimension : shape) count *= static_cast<size_t>(dimension);
  return {count, 0.0f, 0.0f};
}

ShapedValues ShapeReader::Bf16(const std::string& /*name*/, int rows, int cols) const {
  return {Product(rows, cols), 0.0f, 1.0f};
}

ShapedValues ShapeReader::Router(const std::string& /*name*/, int rows, int cols) const {
  return {Product(rows, cols), 0.0f, std::sqrt(3.0f / static_cast<float>(cols))};
}

ShapedMatrix ShapeReader::Bf16Matrix(const std::string& /*name*/, int rows, int cols) const {
  return {kernels::WeightFormat::kBf16, rows, cols};
}

std::pair<ShapedMatrix, ShapedMatrix> ShapeReader::Bf16MatrixPair(const std::string& name, int rows,
                                                                  int first_cols,
                                                                  int second_cols) const {
  return {Bf16Matrix(name, rows, first_cols), Bf16Matrix(name, rows, second_cols)};
}

ShapedMatrix ShapeReader::GroupedFp8Matrix(const std::string& /*name*/, int groups, int group_rows,
                                           int cols) const {
  const int padded = groups > 1 ? (group_rows + kBlock - 1) / kBlock * kBlock : group_rows;
  return {kernels::WeightFormat::kFp8Block128, groups * padded, cols};
}

ShapedMlp ShapeReader::Mlp(kernels::WeightFormat format, const std::string& /*prefix*/,
                           int ffn_width, int hidden) const {
  return {{format, ffn_width, hidden}, {format, ffn_width, hidden}, {format, hidden, ffn_width}};
}

ShapedMlp ShapeReader::Expert(const ModelConfig& config, const std::string& prefix) const {
  return Mlp(config.expert_format, prefix, config.expert_ffn_width, config.hidden);
}

}  // namespace ultraspeed::worker::cuda
