// Repacks checkpoint matrices into the layout of weight_layout.h. Runs at load only: one warp per
// slab, plain loads.
#include "kernels/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/weight_layout.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kWarps = 4;

// Row r of tile i is row i * stride + r of `low` for r < 8, row i * stride + high_offset + r - 8 of
// `high` for the others.
struct TileRows {
  CheckpointMatrix low, high;
  int stride, high_offset;
};

struct SourceRow {
  const CheckpointMatrix* matrix;
  int row;  // may be past the end: zeros
};

__device__ SourceRow RowOfTile(const TileRows& rows, int tile, int row) {
  if (row < 8) return {&rows.low, tile * rows.stride + row};
  return {&rows.high, tile * rows.stride + rows.high_offset + row - 8};
}

// The raw code of an element, 0 outside the matrix.
__device__ uint32_t Code(const SourceRow& source, int column) {
  const CheckpointMatrix& m = *source.matrix;
  if (source.row >= m.num_rows || column >= m.num_cols) return 0;
  const size_t i = static_cast<size_t>(source.row) * m.num_cols + column;
  switch (m.format) {
    case WeightFormat::kBf16:
      return static_cast<const bf16*>(m.codes)[i];
    case WeightFormat::kFp8Block128:
      return static_cast<const uint8_t*>(m.codes)[i];
    case WeightFormat::kMxfp4:
      return static_cast<const uint8_t*>(m.codes)[i / 2] >> (i % 2 * 4) & 15;
  }
  return 0;
}

// Eight consecutive columns of a row as the bit fields that the matching expansion in
// device/fragments.cuh takes apart. Column 2 q + h is half h of register q.

__device__ void WriteBf16(const SourceRow& source, int column, uint32_t* words) {
  for (int q = 0; q < 4; ++q) {
    words[q] = Code(source, column + 2 * q) | Code(source, column + 2 * q + 1) << 16;
  }
}

// Two registers a word. The even one: sign at bit 15, exponent and mantissa at 10..4. The odd one:
// sign at 11, upper three bits at 14..12, lower four at 3..0.
__device__ void WriteFp8(const SourceRow& source, int column, uint32_t* words) {
  for (int w = 0; w < 2; ++w) {
    words[w] = 0;
    for (int h = 0; h < 2; ++h) {
      const uint32_t even = Code(source, column + 4 * w + h);
      const uint32_t odd = Code(source, column + 4 * w + 2 + h);
      words[w] |= ((even >> 7) << 15 | (even & 127) << 4 | (odd >> 7) << 11 | (odd >> 4 & 7) << 12 |
                   (odd & 15))
                  << (16 * h);
    }
  }
}

// Four pairs a word. ExpandMxfp4 wants the bits of each pair (sign, exponent, mantissa) at 15, 8, 7
// and 6 of both halves; here stands from where in the word it takes bit 15, 8, 7 and 6 of the low
// half, found by search: no placement needs fewer operations. The high half's are 16 further on,
// around the word's end.
__device__ void WriteMxfp4(const SourceRow& source, int column, uint32_t* words) {
  constexpr int kPlace[4][4] = {{15, 8, 7, 6}, {9, 2, 1, 0}, {5, 30, 29, 28}, {11, 4, 3, 10}};
  words[0] = 0;
  for (int h = 0; h < 2; ++h) {
    for (int q = 0; q < 4; ++q) {
      const uint32_t code = Code(source, column + 2 * q + h);
      for (int bit = 0; bit < 4; ++bit) {
        words[0] |= (code >> (3 - bit) & 1) << (kPlace[q][bit] + 16 * h) % 32;
      }
    }
  }
}

__device__ float BlockScale(const SourceRow& source, int slab) {
  const CheckpointMatrix& m = *source.matrix;
  if (source.row >= m.num_rows) return 0.0f;
  return m.scales_f32[static_cast<size_t>(source.row / 128) * NumSlabs(m.num_cols) + slab];
}

__device__ uint8_t GroupScale(const SourceRow& source, int group) {
  const CheckpointMatrix& m = *source.matrix;
  const int num_groups = m.num_cols / 32;
  if (source.row >= m.num_rows || group >= num_groups) return kE8m0Offset;
  const int code = m.scales_e8m0[static_cast<size_t>(source.row) * num_groups + group];
  return static_cast<uint8_t>(min(code + kE8m0Offset, 254));
}

__global__ void PackKernel(const __grid_constant__ TileRows rows, int num_tiles, int num_slabs,
                           uint8_t* packed) {
  const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (index >= int64_t{num_tiles} * num_slabs) return;
  const int tile = static_cast<int>(index / num_slabs);
  const int slab = static_cast<int>(index % num_slabs);
  const WeightFormat format = rows.low.format;
  uint8_t* const out = packed + index * SlabBytes(format);
  auto* const words = reinterpret_cast<uint32_t*>(out);
  const int lane = threadIdx.x % 32;

  for (int j = 0; j < 4; ++j) {
    const int column = slab * kSlabColumns + 32 * j + 8 * (lane % 4);
    for (int h = 0; h < 2; ++h) {
      const SourceRow source = RowOfTile(rows, tile, lane / 4 + 8 * h);
      switch (format) {
        case WeightFormat::kBf16:
          WriteBf16(source, column, words + ((2 * j + h) * 32 + lane) * 4);
          break;
        case WeightFormat::kFp8Block128:
          WriteFp8(source, column, words + (j * 32 + lane) * 4 + 2 * h);
          break;
        case WeightFormat::kMxfp4:
          WriteMxfp4(source, column, words + (j / 2 * 32 + lane) * 4 + j % 2 * 2 + h);
          break;
      }
    }
  }
  if (format == WeightFormat::kFp8Block128 && lane < 4) {
    auto* const scales = reinterpret_cast<float*>(out + SlabCodeBytes(format));
    scales[lane] = lane < 2 ? BlockScale(RowOfTile(rows, tile, 8 * lane), slab) : 0.0f;
  }
  if (format == WeightFormat::kMxfp4) {
    auto* const scales = reinterpret_cast<uint32_t*>(out + SlabCodeBytes(format));
    if (lane < kTileRows) {
      uint32_t fields = 0;
      for (int j = 0; j < kGroupsPerSlab; ++j) {
        const uint32_t field = GroupScale(RowOfTile(rows, tile, lane), slab * kGroupsPerSlab + j);
        fields |= field << (24 - 8 * j);
      }
      scales[lane] = __funnelshift_r(fields, fields, 1);  // the first is in place (GroupFactor)
    }
  }
}

void CheckSource(const CheckpointMatrix& source) {
  KERNELS_CHECK(source.num_cols % 32, ==, 0);
  if (source.format == WeightFormat::kFp8Block128) KERNELS_CHECK(source.num_cols % 128, ==, 0);
}

void LaunchPack(const TileRows& rows, int num_tiles, void* packed, cudaStream_t stream) {
  const int num_slabs = NumSlabs(rows.low.num_cols);
  const int64_t warps = int64_t{num_tiles} * num_slabs;
  if (warps == 0) return;
  const auto blocks = static_cast<unsigned>((warps + kWarps - 1) / kWarps);
  PackKernel<<<blocks, kWarps * 32, 0, stream>>>(rows, num_tiles, num_slabs,
                                                 static_cast<uint8_t*>(packed));
  CheckLaunch("PackKernel");
}

}  // namespace

size_t PackedBytes(WeightFormat format, int num_rows, int num_cols) {
  return NumRowTiles(num_rows) * TileBytes(format, num_cols);
}

Matrix Pack(const CheckpointMatrix& source, void* packed, cudaStream_t stream) {
  CheckSource(source);
  LaunchPack({.low = source, .high = source, .stride = 16, .high_offset = 8},
             NumRowTiles(source.num_rows), packed, stream);
  return {source.format, source.num_rows, source.num_cols, packed};
}

ExpertBytes PackedExpertBytes(WeightFormat format, int ffn_width, int hidden) {
  return {.gate_up = PackedBytes(format, 2 * ffn_width, hidden),
          .down = PackedBytes(format, hidden, ffn_width)};
}

void PackExpert(const CheckpointMatrix& gate, const CheckpointMatrix& up,
                const CheckpointMatrix& down, int expert, const Experts& experts,
                cudaStream_t stream) {
  CheckSource(gate);
  CheckSource(up);
  CheckSource(down);
  KERNELS_CHECK(gate.num_rows, ==, experts.ffn_width);
  KERNELS_CHECK(up.num_rows, ==, experts.ffn_width);
  KERNELS_CHECK(down.num_cols, ==, experts.ffn_width);
  KERNELS_CHECK(gate.num_cols, ==, experts.hidden);
  KERNELS_CHECK(up.num_cols, ==, experts.hidden);
  KERNELS_CHECK(down.num_rows, ==, experts.hidden);
  KERNELS_CHECK(expert, <, experts.num_experts);
  const ExpertBytes bytes = PackedExpertBytes(experts.format, experts.ffn_width, experts.hidden);
  const auto place = [&](const void* all, size_t one) {
    return const_cast<uint8_t*>(static_cast<const uint8_t*>(all)) + expert * one;
  };
  LaunchPack({.low = gate, .high = up, .stride = 8, .high_offset = 0},
             NumRowTiles(2 * experts.ffn_width), place(experts.gate_up, bytes.gate_up), stream);
  LaunchPack({.low = down, .high = down, .stride = 16, .high_offset = 8},
             NumRowTiles(experts.hidden), place(experts.down, bytes.down), stream);
}

}  // namespace ultraspeed::kernels::cuda
