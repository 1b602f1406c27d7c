// Hands out a checkpoint's tensors as vectors and matrices in checkpoint form and refuses values
// that are not numbers.
//
// Caller: weights_loader.h. Remembers the first error, so that a layer is read as a plain list of
// its fields; after an error every read is empty. Thread: the loading thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/ops.h"
#include "worker/model/checkpoint.h"

namespace ultraspeed::worker {

// A matrix in checkpoint form. Codes and scales either lie in the checkpoint's mapped file, which
// must outlive it, or are owned, where the file's form does not serve. Movable.
class StoredMatrix {
 public:
  StoredMatrix() = default;
  StoredMatrix(StoredMatrix&&) = default;
  StoredMatrix& operator=(StoredMatrix&&) = default;
  explicit StoredMatrix(const kernels::CheckpointMatrix& mapped) : view_(mapped) {}

  bool empty() const { return view_.num_rows == 0; }
  // Valid until this object changes or ends.
  const kernels::CheckpointMatrix& view() const { return view_; }

  void OwnCodes(std::vector<uint8_t> codes);
  void OwnCodes(std::vector<kernels::bf16> codes);
  void OwnScales(std::vector<float> scales);
  // REQUIRES: both BF16; equally wide unless this one is empty.
  void AppendRows(const StoredMatrix& rows);

 private:
  kernels::CheckpointMatrix view_ = {};
  std::vector<uint8_t> codes_;
  std::vector<kernels::bf16> bf16_codes_;
  std::vector<float> scales_;
};

// The three matrices of an expert or of a dense layer's MLP.
struct StoredMlp {
  StoredMatrix gate;  // [F, H]
  StoredMatrix up;    // [F, H]
  StoredMatrix down;  // [H, F]
};

class TensorReader {
 public:
  explicit TensorReader(Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  std::vector<float> Bf16AsFloat(const std::string& name, int count);
  std::vector<float> F32(const std::string& name, const std::vector<int64_t>& shape);
  std::vector<kernels::bf16> Bf16(const std::string& name, int rows, int cols);
  // A router is F32 in some releases and BF16 in others; both become fp32.
  std::vector<float> Router(const std::string& name, int rows, int cols);

  StoredMatrix Bf16Matrix(const std::string& name, int rows, int cols);
  // name + "_scale_inv" holds the block scales.
  StoredMatrix Fp8Matrix(const std::string& name, int rows, int cols);
  // Row groups whose blocks are counted from each group's first row; each is padded with zero rows
  // to whole blocks.
  StoredMatrix GroupedFp8Matrix(const std::string& name, int groups, int group_rows, int cols);
  // name + "_scale" holds the E8M0 scales.
  StoredMatrix Mxfp4Matrix(const std::string& name, int rows, int cols);
  StoredMatrix Matrix(kernels::WeightFormat format, const std::string& name, int rows, int cols);
  // The three of an expert or of a dense layer: prefix + "{gate,up,down}_proj.weight".
  StoredMlp Mlp(kernels::WeightFormat format, const std::string& prefix, int ffn_width, int hidden);

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
