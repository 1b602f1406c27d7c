// A model's tensors as shapes without data: what a Reader of weights_loader.h looks like when there
// is no checkpoint. Counts memory before loading and makes up weights for benchmarks.
//
// Thread: any; pure.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/ops.h"
#include "worker/model/config.h"

namespace ultraspeed::worker::cuda {

// `count` values, uniform in [mean - spread, mean + spread].
struct ShapedValues {
  size_t count;
  float mean;
  float spread;
};

class ShapedMatrix {
 public:
  ShapedMatrix() = default;
  ShapedMatrix(kernels::WeightFormat format, int rows, int cols)
      : view_{format, rows, cols, nullptr, nullptr, nullptr} {}

  // Without pointers.
  const kernels::CheckpointMatrix& view() const { return view_; }
  void AppendRows(const ShapedMatrix& rows);

 private:
  kernels::CheckpointMatrix view_ = {};
};

struct ShapedMlp {
  ShapedMatrix gate, up, down;
};

// The members of TensorReader that weights_loader.h calls.
class ShapeReader {
 public:
  ShapedValues Bf16AsFloat(const std::string& name, int count) const;
  ShapedValues F32(const std::string& name, const std::vector<int64_t>& shape) const;
  ShapedValues Bf16(const std::string& name, int rows, int cols) const;
  ShapedValues Router(const std::string& name, int rows, int cols) const;
  ShapedMatrix Bf16Matrix(const std::string& name, int rows, int cols) const;
  std::pair<ShapedMatrix, ShapedMatrix> Bf16MatrixPair(const std::string& name, int rows,
                                                       int first_cols, int second_cols) const;
  ShapedMatrix GroupedFp8Matrix(const std::string& name, int groups, int group_rows,
                                int cols) const;
  ShapedMlp Mlp(kernels::WeightFormat format, const std::string& prefix, int ffn_width,
                int hidden) const;
  ShapedMlp Expert(const ModelConfig& config, const std::string& prefix) const;
  absl::Status status() const { return absl::OkStatus(); }
};

}  // namespace ultraspeed::worker::cuda
