// The model's weights in device memory, packed for kernels/cuda, from a checkpoint or made up.
//
// Callers: CudaExecutor; the forward passes read the result. Thread: start-up only; immutable
// afterwards.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/ops.h"
#include "worker/cuda/device_memory.h"
#include "worker/cuda/model_shape.h"
#include "worker/cuda/staging.h"
#include "worker/model/tensor_reader.h"
#include "worker/model/weights.h"

namespace ultraspeed::worker::cuda {

struct DeviceMlp {
  kernels::cuda::Matrix gate_up;  // [2F, H]: all gate rows, then all up rows
  kernels::cuda::Matrix down;     // [H, F]
};

struct DeviceStorage {
  using Floats = const float*;  // null = not in this model
  using Bf16s = const kernels::bf16*;
  using Matrix = kernels::cuda::Matrix;
  using Mlp = DeviceMlp;
  using Experts = kernels::cuda::Experts;
};
using TargetLayer = TargetLayerOf<DeviceStorage>;
using TargetWeights = TargetWeightsOf<DeviceStorage>;
using DrafterLayer = DrafterLayerOf<DeviceStorage>;
using MarkovHead = MarkovHeadOf<DeviceStorage>;
using DrafterWeights = DrafterWeightsOf<DeviceStorage>;
using ModelWeights = ModelWeightsOf<DeviceStorage>;

// Places every tensor in the arena: data goes through a staging area and is repacked on the device;
// shapes without data are filled with repeatable random values (nothing, while the arena counts).
class DevicePacker {
 public:
  using Storage = DeviceStorage;

  // `staging`: staging_bytes() of a packer that has counted the same model; null while counting.
  DevicePacker(DeviceArena& arena, void* staging, cudaStream_t stream)
      : arena_(arena), staging_(static_cast<uint8_t*>(staging)), stream_(stream), copies_(stream) {}

  DeviceArena& arena() { return arena_; }
  cudaStream_t stream() const { return stream_; }
  CopiesInFlight& copies() { return copies_; }
  // Whether shapes without data get random values; without, they get a place alone, for bytes that
  // come packed. True at first.
  void FillShapes(bool fill) { fill_shapes_ = fill; }

  const float* Floats(const std::vector<float>& values) {
    return arena_.Upload(MemoryKind::kWeights, values);
  }
  const kernels::bf16* Bf16s(const std::vector<kernels::bf16>& values) {
    return arena_.Upload(MemoryKind::kWeights, values);
  }
  const float* Floats(const ShapedValues& shape);
  // [E, H] as PackRouter packs it; `norm`: the device's, of the norm before the router.
  const float* Router(const std::vector<float>& values, const float* norm, int num_experts);
  const float* Router(const ShapedValues& shape, const float* norm, int num_experts);
  const kernels::bf16* Bf16s(const ShapedValues& shape);

  // Source: StoredMatrix or ShapedMatrix.
  template <typename Source>
  kernels::cuda::Matrix Matrix(const Source& source) {
    const kernels::cuda::Matrix matrix = Place({source.view()});
    KeepUntilCopied({&source});
    return matrix;
  }
  template <typename SourceMlp>
  DeviceMlp Mlp(const SourceMlp& source) {
    const DeviceMlp mlp = {Place({source.gate.view(), source.up.view()}),
                           Place({source.down.view()})};
    KeepUntilCopied({&source.gate, &source.up, &source.down});
    return mlp;
  }
  kernels::cuda::Experts NewExperts(const ModelConfig& config);
  template <typename SourceMlp>
  void AddExpert(kernels::cuda::Experts& experts, int expert, const SourceMlp& source) {
    PlaceExpert(experts, expert, source.gate.view(), source.up.view(), source.down.view());
    KeepUntilCopied({&source.gate, &source.up, &source.down});
  }

  size_t staging_bytes() const { return staging_bytes_; }

 private:
  // Neither while counting nor where shapes are given a place alone.
  bool writes() const { return !arena_.counting() && fill_shapes_; }
  void KeepUntilCopied(std::initializer_list<const StoredMatrix*> sources);
  void KeepUntilCopied(std::initializer_list<const ShapedMatrix*> /*sources*/) {}
  // `fill(values)` puts the router's rows into the staging area.
  template <typename FillFn>
  const float* PlaceRouter(size_t count, const float* norm, int num_experts, FillFn fill);
  // The matrices one below the other, as one.
  kernels::cuda::Matrix Place(std::initializer_list<kernels::CheckpointMatrix> parts);
  void PlaceExpert(const kernels::cuda::Experts& experts, int expert,
                   const kernels::CheckpointMatrix& gate, const kernels::CheckpointMatrix& up,
                   const kernels::CheckpointMatrix& down);
  // Brings the parts into the staging area from `offset` on, which moves past them.
  kernels::CheckpointMatrix Stage(std::initializer_list<kernels::CheckpointMatrix> parts,
                                  size_t& offset);
  void Fill(const kernels::CheckpointMatrix& part, uint8_t* codes, uint8_t* scales);

  DeviceArena& arena_;
  uint8_t* const staging_;
  const cudaStream_t stream_;
  CopiesInFlight copies_;
  bool fill_shapes_ = true;
  size_t staging_bytes_ = 0;
  uint64_t seed_ = 1;  // of the next random tensor
};

// The weights' places while `arena` counts; random weights of this shape where it has memory.
ModelWeights ShapeModelWeights(const ModelConfig& config, DevicePacker& pack);

// As worker::LoadModelWeights: `config` is the whole model's, the weights are those of the rank, on
// the current GPU. Through pinned memory, unless options.shared brings its own; with
// options.weights_cache from there, or into it.
absl::StatusOr<ModelWeights> LoadModelWeights(const std::string& folder, const ModelConfig& config,
                                              DevicePacker& pack, const LoadOptions& options);

}  // namespace ultraspeed::worker::cuda
