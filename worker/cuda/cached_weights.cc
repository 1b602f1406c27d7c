#include "worker/cuda/cached_weights.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/cuda/check.h"
#include "worker/model/checksum.h"
#include "worker/model/shared_reads.h"
#include "worker/model/tensor_list.h"
#include "worker/model/weights_cache.h"

namespace ultraspeed::worker::cuda {
namespace {

using kernels::CheckpointMatrix;
using kernels::WeightFormat;

constexpr int kProbeRows = 128, kProbeColumns = 256;
constexpr int kThreadsMin = 2;  // of each rank

std::vector<uint8_t> ProbeBytes(int count) {
  std::vector<uint8_t> bytes(static_cast<size_t>(count));
  uint32_t state = 1;
  for (uint8_t& byte : bytes) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<uint8_t>(state >> 24);
  }
  return bytes;
}

StoredMatrix ProbeMatrix(WeightFormat format, int rows, int columns) {
  StoredMatrix matrix(CheckpointMatrix{.format = format,
                                       .num_rows = rows,
                                       .num_cols = columns,
                                       .codes = nullptr,
                                       .scales_f32 = nullptr,
                                       .scales_e8m0 = nullptr});
  const int values = rows * columns;
  switch (format) {
    case WeightFormat::kBf16:
      matrix.OwnCodes(ProbeBytes(2 * values));
      break;
    case WeightFormat::kFp8Block128:
      matrix.OwnCodes(ProbeBytes(values));
      matrix.OwnScales({0.5f, 3.0f});
      break;
    case WeightFormat::kMxfp4: {
      matrix.OwnCodes(ProbeBytes(values / 2));
      std::vector<uint8_t> scales = ProbeBytes(values / 32);
      for (uint8_t& scale : scales) scale = static_cast<uint8_t>(96 + scale % 64);
      matrix.OwnE8m0Scales(std::move(scales));
      break;
    }
  }
  return matrix;
}

void PlaceProbe(DevicePacker& pack) {
  std::vector<float> router, norm;
  for (const uint8_t byte : ProbeBytes(kProbeRows * kProbeColumns))
    router.push_back(static_cast<float>(byte) / 3.0f);
  for (const uint8_t byte : ProbeBytes(kProbeColumns)) norm.push_back(static_cast<float>(byte) / 7);
  pack.Router(router, pack.Floats(norm), kProbeRows);
  for (const WeightFormat format :
       {WeightFormat::kBf16, WeightFormat::kFp8Block128, WeightFormat::kMxfp4}) {
    pack.Matrix(ProbeMatrix(format, kProbeRows, kProbeColumns));
    if (format == WeightFormat::kBf16) continue;
    ModelConfig config;
    config.expert_format = format;
    config.num_experts = 1;
    config.expert_ffn_width = kProbeRows;
    config.hidden = kProbeColumns;
    kernels::cuda::Experts experts = pack.NewExperts(config);
    StoredMlp expert;
    expert.gate = ProbeMatrix(format, kProbeRows, kProbeColumns);
    expert.up = ProbeMatrix(format, kProbeRows, kProbeColumns);
    expert.down = ProbeMatrix(format, kProbeColumns, kProbeRows);
    pack.AddExpert(experts, 0, expert);
  }
}

std::string ShapeChecksum(const ModelConfig& part) {
  std::string text = absl::StrCat("experts ", static_cast<int>(part.expert_format), "\n");
  for (const auto& tensors : {TargetTensors(part), DrafterTensors(part.drafter)}) {
    for (const TensorSpec& tensor : tensors) {
      absl::StrAppend(&text, tensor.name, " ", tensor.dtype);
      for (const int64_t dimension : tensor.shape) absl::StrAppend(&text, " ", dimension);
      absl::StrAppend(&text, "\n");
    }
  }
  return ChecksumName(Checksum(std::string_view(text)));
}

ReadOptions ReadsOfRank(const LoadOptions& options) {
  ReadOptions reads = options.shared->options();
  reads.threads = std::max(kThreadsMin, reads.threads / options.rank.count);
  return reads;
}

absl::Status ReadInto(uint8_t* device, const std::string& path, const CacheIdentity& identity,
                      DevicePacker& pack, const LoadOptions& options) {
  absl::StatusOr<std::unique_ptr<WeightsCacheReader>> reader =
      WeightsCacheReader::Open(path, identity, ReadsOfRank(options), options.shared->pool());
  if (!reader.ok()) return reader.status();
  while (!(*reader)->done()) {
    absl::StatusOr<WeightsCacheReader::Chunk> chunk = (*reader)->Next();
    if (!chunk.ok()) return chunk.status();
    CUDA_CHECK(cudaMemcpyAsync(device + chunk->offset, chunk->part.data, chunk->part.bytes,
                               cudaMemcpyHostToDevice, pack.stream()));
    const int64_t bytes_done = chunk->offset + static_cast<int64_t>(chunk->part.bytes);
    pack.copies().Keep({std::move(chunk->part.lease)});
    if (options.progress) options.progress(bytes_done, identity.payload_bytes);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> PackingProbe(cudaStream_t stream) {
  DeviceArena counting;
  DevicePacker count(counting, nullptr, nullptr);
  PlaceProbe(count);
  counting.TakeBytes(MemoryKind::kStaging, count.staging_bytes());
  absl::StatusOr<std::unique_ptr<DeviceArena>> arena = DeviceArena::Create(counting.taken());
  if (!arena.ok()) return arena.status();
  DevicePacker pack(**arena, (*arena)->TakeBytes(MemoryKind::kStaging, count.staging_bytes()),
                    stream);
  const DeviceArena::Mark begin = (*arena)->mark();
  PlaceProbe(pack);
  std::vector<uint8_t> packed((*arena)->mark().used - begin.used);
  CUDA_CHECK(cudaMemcpyAsync(packed.data(), (*arena)->At(begin), packed.size(),
                             cudaMemcpyDeviceToHost, stream));
  CUDA_CHECK(cudaStreamSynchronize(stream));
  return ChecksumName(Checksum(packed.data(), packed.size()));
}

absl::StatusOr<ModelWeights> LoadThroughCache(
    const std::string& folder, const ModelConfig& config, DevicePacker& pack,
    const LoadOptions& options, const std::function<absl::StatusOr<ModelWeights>()>& load) {
  const auto notice = [&](absl::string_view text) {
    if (options.notice) options.notice(absl::StrCat("weights cache: ", text));
  };
  const absl::StatusOr<ModelConfig> part = PartOf(config, options.rank.count);
  const absl::StatusOr<std::string> checkpoint = CheckpointFingerprint(folder);
  const absl::StatusOr<std::string> probe = PackingProbe(pack.stream());
  if (!part.ok() || !checkpoint.ok() || !probe.ok()) return load();  // which says what is wrong

  const DeviceArena::Mark begin = pack.arena().mark();
  pack.FillShapes(false);
  ModelWeights placed = ShapeModelWeights(*part, pack);
  pack.FillShapes(true);
  uint8_t* const device = pack.arena().At(begin);
  const CacheIdentity identity = {
      .checkpoint = *checkpoint,
      .layout = absl::StrCat("packing ", *probe, " shape ", ShapeChecksum(*part)),
      .rank = options.rank,
      .payload_bytes = static_cast<int64_t>(pack.arena().mark().used - begin.used)};
  const std::string path =
      CachePath(options.weights_cache, config.name,
                config.requantize_experts ? "cuda-mxfp4" : "cuda", options.rank);
  const absl::Status read = ReadInto(device, path, identity, pack, options);
  pack.copies().WaitForAll();
  if (read.ok()) {
    options.shared->Leave(options.rank.index);
    return placed;
  }
  notice(absl::StrCat(read.message(), "; it is made from the checkpoint"));

  // Zeros between the tensors, as at first, whatever has been read.
  CUDA_CHECK(
      cudaMemsetAsync(device, 0, static_cast<size_t>(identity.payload_bytes), pack.stream()));
  CUDA_CHECK(cudaStreamSynchronize(pack.stream()));
  pack.arena().Rewind(begin);
  absl::StatusOr<ModelWeights> weights = load();
  if (!weights.ok()) return weights;
  CUDA_CHECK(cudaStreamSynchronize(pack.stream()));
  int gpu = 0;
  CUDA_CHECK(cudaGetDevice(&gpu));
  const absl::Status written = WriteWeightsCache(
      path, identity, ReadsOfRank(options).threads, [&](int64_t offset, void* out, int64_t bytes) {
        CUDA_CHECK(cudaSetDevice(gpu));  // of the writing thread
        CUDA_CHECK(
            cudaMemcpy(out, device + offset, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost));
      });
  notice(written.ok() ? absl::StrFormat("%s: written, %.2f GB", path,
                                        static_cast<double>(identity.payload_bytes) / 1e9)
                      : absl::StrCat(written.message(), "; the next start will load as this one"));
  return weights;
}

}  // namespace ultraspeed::worker::cuda
