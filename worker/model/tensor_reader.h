// Hands out a checkpoint's tensors, or one rank's part of each, as vectors and matrices in
// checkpoint form and refuses values that are not numbers.
//
// Sizes are those of the part (PartOf); SplitOf says where in the stored tensor it lies. The bytes
// come from a stream that reads ahead, or without one from the mapped files. Caller:
// weights_loader.h. Remembers the first error, so that a layer is read as a plain list of its
// fields; after an error every read is empty. Thread: the loading thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/ops.h"
#include "kernels/thread_pool.h"
#include "worker/model/checkpoint.h"
#include "worker/model/part_stream.h"
#include "worker/model/sharding_plan.h"

namespace ultraspeed::worker {

// A matrix in checkpoint form. Codes and scales lie in the checkpoint's mapped file, which must
// outlive it, in staging memory that is leased, or are owned, where the stored form does not serve.
// Movable.
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
  void OwnE8m0Scales(std::vector<uint8_t> scales);
  void Lease(std::shared_ptr<const uint8_t> bytes) { leases_.push_back(std::move(bytes)); }
  // REQUIRES: both BF16; equally wide unless this one is empty. Owns its codes from now on.
  void AppendRows(const StoredMatrix& rows);

  // Keeps the leased bytes of view() where they are, also after this object's end: for copies to a
  // device that are still under way.
  const std::vector<std::shared_ptr<const uint8_t>>& leases() const { return leases_; }

 private:
  kernels::CheckpointMatrix view_ = {};
  std::vector<uint8_t> codes_;
  std::vector<kernels::bf16> bf16_codes_;
  std::vector<float> scales_;
  std::vector<uint8_t> e8m0_scales_;
  std::vector<std::shared_ptr<const uint8_t>> leases_;
};

// The three matrices of an expert or of a dense layer's MLP.
struct StoredMlp {
  StoredMatrix gate;  // [F, H]
  StoredMatrix up;    // [F, H]
  StoredMatrix down;  // [H, F]
};

class TensorReader {
 public:
  // `stream` (may be null): of the tensors that will be asked for, in that order.
  explicit TensorReader(Checkpoint& checkpoint, const Rank& rank = {}, PartStream* stream = nullptr)
      : checkpoint_(checkpoint), rank_(rank), stream_(stream) {}

  // Called with bytes_taken() from time to time.
  void OnBytes(std::function<void(int64_t)> report) { report_ = std::move(report); }

  std::vector<float> Bf16AsFloat(const std::string& name, int count);
  std::vector<float> F32(const std::string& name, const std::vector<int64_t>& shape);
  std::vector<kernels::bf16> Bf16(const std::string& name, int rows, int cols);
  // A router is F32 in some releases and BF16 in others; both become fp32.
  std::vector<float> Router(const std::string& name, int rows, int cols);

  StoredMatrix Bf16Matrix(const std::string& name, int rows, int cols);
  // Two that are stored side by side, as [rows, first_cols + second_cols].
  std::pair<StoredMatrix, StoredMatrix> Bf16MatrixPair(const std::string& name, int rows,
                                                       int first_cols, int second_cols);
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
  // An expert in config.expert_format, whatever it is stored in.
  StoredMlp Expert(const ModelConfig& config, const std::string& prefix);

  const absl::Status& status() const { return status_; }
  // Of all matrices that were rounded so far.
  const kernels::RoundingError& rounding_error() const { return rounding_error_; }

  // Of all parts handed out so far, as stored.
  int64_t bytes_taken() const { return bytes_taken_; }

 private:
  // A part of a stored tensor, rows of it or some columns of each row: inside the mapped tensor, or
  // contiguous in staging memory.
  struct Part {
    const uint8_t* data = nullptr;  // null after an error
    int64_t num_rows = 0;
    int64_t row_elements = 0;
    int64_t stride_elements = 0;  // from row to row of data
    int64_t stored_row_elements = 0;
    int64_t first_element = 0;  // of the stored tensor
    int element_bytes = 1;
    std::shared_ptr<const uint8_t> lease;  // null: mapped

    size_t num_elements() const { return static_cast<size_t>(num_rows * row_elements); }
    size_t bytes() const { return num_elements() * static_cast<size_t>(element_bytes); }
    bool contiguous() const { return num_rows == 1 || row_elements == stride_elements; }
    void CopyTo(void* out) const;
    size_t StoredIndex(size_t element) const;
  };

  StoredMatrix Rounded(const StoredMatrix& fp8);
  // `shape`: of the part, one or two dimensions.
  Part Take(const std::string& name, std::string_view dtype, const std::vector<int64_t>& shape);
  // The part's bytes: where they lie, or gathered into `gathered`.
  const uint8_t* Codes(const Part& part, std::vector<uint8_t>& gathered);
  // The part's values where they lie, or copied into `copied`: a file promises no alignment.
  template <typename T>
  const T* Aligned(const Part& part, std::vector<T>& copied);
  // Refuses the first element for which `bad` holds, by its place in the stored tensor.
  template <typename T, typename Bad>
  void RefuseFirst(const std::string& name, const Part& part, const T* values, Bad bad,
                   const char* what);

  Checkpoint& checkpoint_;
  const Rank rank_;
  PartStream* const stream_;
  std::function<void(int64_t)> report_;
  int64_t bytes_taken_ = 0;
  int64_t bytes_reported_ = 0;
  std::unique_ptr<kernels::ThreadPool> pool_;  // made when the first matrix is rounded
  kernels::RoundingError rounding_error_;
  absl::Status status_;
};

}  // namespace ultraspeed::worker
