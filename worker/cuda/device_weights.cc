#include "worker/cuda/device_weights.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda/synthetic.h"
#include "worker/cuda/cached_weights.h"
#include "worker/cuda/check.h"
#include "worker/model/shared_reads.h"
#include "worker/model/weights_loader.h"

namespace ultraspeed::worker::cuda {
namespace {

namespace ops = kernels::cuda;
using kernels::CheckpointMatrix;
using kernels::WeightFormat;

constexpr size_t kBlock = 128;
constexpr size_t kMxBlock = 32;

size_t Aligned(size_t bytes) {
  return (bytes + DeviceArena::kAlignment - 1) / DeviceArena::kAlignment * DeviceArena::kAlignment;
}

size_t CodeBytes(const CheckpointMatrix& m) {
  const size_t count = static_cast<size_t>(m.num_rows) * static_cast<size_t>(m.num_cols);
  switch (m.format) {
    case WeightFormat::kBf16:
      return count * sizeof(kernels::bf16);
    case WeightFormat::kFp8Block128:
      return count;
    case WeightFormat::kMxfp4:
      return count / 2;
  }
  return 0;
}

size_t ScaleBytes(const CheckpointMatrix& m) {
  const auto rows = static_cast<size_t>(m.num_rows), cols = static_cast<size_t>(m.num_cols);
  switch (m.format) {
    case WeightFormat::kBf16:
      return 0;
    case WeightFormat::kFp8Block128:
      return (rows + kBlock - 1) / kBlock * ((cols + kBlock - 1) / kBlock) * sizeof(float);
    case WeightFormat::kMxfp4:
      return rows * cols / kMxBlock;
  }
  return 0;
}

const void* HostScales(const CheckpointMatrix& m) {
  return m.format == WeightFormat::kMxfp4 ? static_cast<const void*>(m.scales_e8m0) : m.scales_f32;
}

}  // namespace

const float* DevicePacker::Floats(const ShapedValues& shape) {
  float* const place = arena_.Take<float>(MemoryKind::kWeights, shape.count);
  if (place != nullptr && fill_shapes_)
    ops::FillUniform(place, shape.count, shape.mean, shape.spread, seed_++, stream_);
  return place;
}

const kernels::bf16* DevicePacker::Bf16s(const ShapedValues& shape) {
  auto* const place = arena_.Take<kernels::bf16>(MemoryKind::kWeights, shape.count);
  if (place != nullptr && fill_shapes_)
    ops::FillUniformBf16(place, shape.count, shape.mean, shape.spread, seed_++, stream_);
  return place;
}

template <typename FillFn>
const float* DevicePacker::PlaceRouter(size_t count, const float* norm, int num_experts,
                                       FillFn fill) {
  if (count == 0) return nullptr;  // an earlier tensor was refused
  staging_bytes_ = std::max(staging_bytes_, Aligned(count * sizeof(float)));
  const int hidden = static_cast<int>(count / static_cast<size_t>(num_experts));
  auto* const place =
      arena_.Take<float>(MemoryKind::kWeights, ops::PackedRouterFloats(num_experts, hidden));
  if (!writes()) return place;
  auto* const values = reinterpret_cast<float*>(staging_);
  fill(values);
  ops::PackRouter(values, norm, num_experts, hidden, place, stream_);
  return place;
}

const float* DevicePacker::Router(const std::vector<float>& values, const float* norm,
                                  int num_experts) {
  return PlaceRouter(values.size(), norm, num_experts, [&](float* to) {
    CUDA_CHECK(cudaMemcpyAsync(to, values.data(), values.size() * sizeof(float),
                               cudaMemcpyHostToDevice, stream_));
  });
}

const float* DevicePacker::Router(const ShapedValues& shape, const float* norm, int num_experts) {
  return PlaceRouter(shape.count, norm, num_experts, [&](float* to) {
    ops::FillUniform(to, shape.count, shape.mean, shape.spread, seed_++, stream_);
  });
}

void DevicePacker::KeepUntilCopied(std::initializer_list<const StoredMatrix*> sources) {
  std::vector<std::shared_ptr<const uint8_t>> leases;
  for (const StoredMatrix* source : sources)
    leases.insert(leases.end(), source->leases().begin(), source->leases().end());
  copies_.Keep(std::move(leases));
}

ops::Matrix DevicePacker::Place(std::initializer_list<CheckpointMatrix> parts) {
  size_t offset = 0;
  const CheckpointMatrix source = Stage(parts, offset);
  if (source.num_rows == 0) return {};  // an earlier tensor was refused
  void* const place = arena_.TakeBytes(
      MemoryKind::kWeights, ops::PackedBytes(source.format, source.num_rows, source.num_cols));
  if (!writes()) return {source.format, source.num_rows, source.num_cols, place};
  return ops::Pack(source, place, stream_);
}

ops::Experts DevicePacker::NewExperts(const ModelConfig& config) {
  ops::Experts experts{.format = config.expert_format,
                       .num_experts = config.num_experts,
                       .ffn_width = config.expert_ffn_width,
                       .hidden = config.hidden};
  const ops::ExpertBytes bytes =
      ops::PackedExpertBytes(experts.format, experts.ffn_width, experts.hidden);
  const auto count = static_cast<size_t>(experts.num_experts);
  experts.gate_up = arena_.TakeBytes(MemoryKind::kWeights, count * bytes.gate_up);
  experts.down = arena_.TakeBytes(MemoryKind::kWeights, count * bytes.down);
  return experts;
}

void DevicePacker::PlaceExpert(const ops::Experts& experts, int expert,
                               const CheckpointMatrix& gate, const CheckpointMatrix& up,
                               const CheckpointMatrix& down) {
  size_t offset = 0;
  const CheckpointMatrix staged_gate = Stage({gate}, offset), staged_up = Stage({up}, offset),
                         staged_down = Stage({down}, offset);
  if (!writes() || staged_down.num_rows == 0) return;
  ops::PackExpert(staged_gate, staged_up, staged_down, expert, experts, stream_);
}

CheckpointMatrix DevicePacker::Stage(std::initializer_list<CheckpointMatrix> parts,
                                     size_t& offset) {
  CheckpointMatrix whole = *parts.begin();
  size_t code_bytes = 0, scale_bytes = 0;
  whole.num_rows = 0;
  for (const CheckpointMatrix& part : parts) {
    // Scale blocks of the parts must meet at a block's border.
    if (parts.size() > 1 && part.format == WeightFormat::kFp8Block128)
      KERNELS_CHECK(part.num_rows % static_cast<int>(kBlock), ==, 0);
    whole.num_rows += part.num_rows;
    code_bytes += CodeBytes(part);
    scale_bytes += ScaleBytes(part);
  }
  uint8_t* codes = staging_ + offset;
  uint8_t* scales = codes + Aligned(code_bytes);
  offset += Aligned(code_bytes) + Aligned(scale_bytes);
  staging_bytes_ = std::max(staging_bytes_, offset);
  if (!writes()) return whole;

  whole.codes = codes;
  whole.scales_f32 =
      whole.format == WeightFormat::kFp8Block128 ? reinterpret_cast<const float*>(scales) : nullptr;
  whole.scales_e8m0 = whole.format == WeightFormat::kMxfp4 ? scales : nullptr;
  for (const CheckpointMatrix& part : parts) {
    if (part.codes == nullptr) {
      Fill(part, codes, scales);
    } else {
      CUDA_CHECK(
          cudaMemcpyAsync(codes, part.codes, CodeBytes(part), cudaMemcpyHostToDevice, stream_));
      if (ScaleBytes(part) > 0) {
        CUDA_CHECK(cudaMemcpyAsync(scales, HostScales(part), ScaleBytes(part),
                                   cudaMemcpyHostToDevice, stream_));
      }
    }
    codes += CodeBytes(part);
    scales += ScaleBytes(part);
  }
  return whole;
}

// Values of variance about 1 / num_cols, so that a product keeps the size of its input.
void DevicePacker::Fill(const CheckpointMatrix& part, uint8_t* codes, uint8_t* scales) {
  const float deviation = 1.0f / std::sqrt(static_cast<float>(part.num_cols));
  const size_t code_bytes = CodeBytes(part);
  switch (part.format) {
    case WeightFormat::kBf16:
      ops::FillUniformBf16(reinterpret_cast<kernels::bf16*>(codes),
                           code_bytes / sizeof(kernels::bf16), 0, std::sqrt(3.0f) * deviation,
                           seed_++, stream_);
      break;
    case WeightFormat::kFp8Block128:
      ops::FillE4m3(codes, code_bytes, seed_++, stream_);
      ops::FillUniform(reinterpret_cast<float*>(scales), ScaleBytes(part) / sizeof(float),
                       deviation, 0, seed_++, stream_);
      break;
    case WeightFormat::kMxfp4: {
      constexpr float kE2m1Deviation = 2.93f;
      const int exponent = static_cast<int>(std::lround(std::log2(deviation / kE2m1Deviation)));
      ops::FillBytes(codes, code_bytes, seed_++, stream_);
      CUDA_CHECK(cudaMemsetAsync(scales, 127 + exponent, ScaleBytes(part), stream_));
      break;
    }
  }
}

ModelWeights ShapeModelWeights(const ModelConfig& config, DevicePacker& pack) {
  ShapeReader read;
  const auto ignore = [](int /*layer*/) {};
  ModelWeights weights;
  weights.target = ReadTarget(read, pack, config, ignore);
  if (config.drafter.num_layers > 0) {
    weights.drafter = ReadDrafter(read, pack, config.drafter, ignore);
    weights.drafter.mask_embedding = pack.Bf16s(read.Bf16("", 1, config.hidden));
  }
  return weights;
}

absl::StatusOr<ModelWeights> LoadModelWeights(const std::string& folder, const ModelConfig& config,
                                              DevicePacker& pack, const LoadOptions& options) {
  LoadOptions with = options;
  std::unique_ptr<SharedReads> own;
  if (options.shared == nullptr) {
    own = std::make_unique<SharedReads>(options.rank, options.reads, PinnedStaging());
    with.shared = own.get();
  }
  absl::StatusOr<ModelWeights> weights =
      options.weights_cache.empty()
          ? LoadModelWeightsWith(pack, folder, config, with)
          : LoadThroughCache(folder, config, pack, with, [&]() -> absl::StatusOr<ModelWeights> {
              return LoadModelWeightsWith(pack, folder, config, with);
            });
  pack.copies().WaitForAll();
  return weights;
}

}  // namespace ultraspeed::worker::cuda
