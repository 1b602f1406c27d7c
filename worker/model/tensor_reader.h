// Turns a checkpoint's tensors into vectors and packed matrices and refuses values that are not
// numbers.
//
// Caller: weights.cc. Remembers the first error, so that a layer is read as a plain list of its
// fields; after an error every read is empty. Thread: the loading thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/ops.h"
#include "worker/model/checkpoint.h"

namespace ultraspeed::worker {

class TensorReader {
 public:
  explicit TensorReader(Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  std::vector<float> Bf16AsFloat(const std::string& name, int count);
  std::vector<float> F32(const std::string& name, const std::vector<int64_t>& shape);
  std::vector<kernels::bf16> Bf16(const std::string& name, int rows, int cols);
  // A router is F32 in some releases and BF16 in others; both become fp32.
  std::vector<float> Router(const std::string& name, int rows, int cols);

  kernels::PackedMatrix Bf16Matrix(const std::string& name, int rows, int cols);
  // name + "_scale_inv" holds the block scales.
  kernels::PackedMatrix Fp8Matrix(const std::string& name, int rows, int cols);
  // Row groups whose blocks are counted from each group's first row; each is padded with zero rows
  // to whole blocks.
  kernels::PackedMatrix GroupedFp8Matrix(const std::string& name, int groups, int group_rows,
                                         int cols);
  // name + "_scale" holds the E8M0 scales.
  kernels::PackedMatrix Mxfp4Matrix(const std::string& name, int rows, int cols);
  kernels::PackedMatrix Matrix(kernels::WeightFormat format, const std::string& name, int rows,
                               int cols);
  // The three of an expert or of a dense layer: prefix + "{gate,up,down}_proj.weight".
  kernels::MlpWeights Mlp(kernels::WeightFormat format, const std::string& prefix, int ffn_width,
                          int hidden);

  const absl::Status& status() const { return status_; }

 private:
  // Null after an error.
  const uint8_t* Take(const std::string& name, std::string_view dtype,
                      const std::vector<int64_t>& shape);
  void Refuse(const std::string& name, size_t index, const std::string& what);

  Checkpoint& checkpoint_;
  absl::Status status_;
};

}  // namespace ultraspeed::worker
