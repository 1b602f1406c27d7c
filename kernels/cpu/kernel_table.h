// The inner loops that exist once per instruction set, as a table of functions, and what they need
// to agree on.
//
// Callers: the operations of kernels/cpu/*.cc, which check, split the work and call through
// Active(). The tables are compiled from the same *.inc.h sources with different compiler options
// (isa_*.cc). Four give equal bits, so a choice among them is one of speed only; AMX has matrix
// products and attention of its own (*_amx.inc.h), in another order. The isa_*.cc files must not
// instantiate inline functions of other headers: the linker could keep the copy that needs AVX-512.
#pragma once

#include <xmmintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/ops.h"

namespace ultraspeed::kernels {

// vdpbf16ps always treats denormals as zero; with this on, so does everything else. Restores the
// caller's mode at the end.
class FlushDenormals {
 public:
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned saved_;
};

inline constexpr int kTokenBlock = 64;  // tokens that one pass over the weights serves

// A packed matrix as the kernels read it: tiles of 16 rows (the last one padded with zero bytes), a
// tile's 64-byte units in column order.
//   bf16   2 columns a unit; 16-bit word 2 r + c holds row r, column c
//   fp8    4 columns; byte 16 g + 8 s + 2 r + c holds row 4 g + r, column 2 s + c, so that a
//   byte-unpack of the low halves yields
//          columns 0 and 1 of 16 rows and of the high halves columns 2 and 3
//   mxfp4  8 columns; a byte's bits 0..3 hold what fp8 has there, bits 4..7 the same of columns 4
//   to 7; a code is permuted (PackedE2m1)
struct MatrixView {
  WeightFormat format;
  int num_rows;
  int num_cols;
  size_t tile_bytes;
  const uint8_t* codes;
  const float* scales_f32;    // kFp8Block128: [ceil(N/128), ceil(Kdim/128)]
  const uint8_t* all_normal;  // kFp8Block128: bit [ceil(N/16), Kdim/32], from a byte's lowest: none
                              // of 16 rows by 32 columns is zero, subnormal or NaN
  const uint8_t* scales_e8m0;  // kMxfp4: [ceil(N/16), Kdim/32, 16 rows]; 2^-127 counts as zero like
                               // every denormal
  bool exact_in_bf16;          // kMxfp4: as PackedMatrix says
};
MatrixView View(const PackedMatrix& matrix);

// An e2m1 code as it is packed. From the highest bit: two low bits of its order, its sign, the
// order's high bit, where 0.5, 0, 1, 1.5, 2, 3, 4 and 6 have the orders 0 to 7. The bf16 of one
// that is not zero is 252 + order, then six zeros: its low byte has the two bits where a packed
// byte's upper code has them.
uint8_t PackedE2m1(uint8_t code);

// High and low byte of the bf16 of packed e2m1 codes, four times: bits 4 and 5 of an index are
// ignored.
struct alignas(64) E2m1Table {
  uint8_t high[64];
  uint8_t low[64];
};
extern const E2m1Table kE2m1Table;

// High and low byte of the bf16 of e4m3fn codes 0..127.
struct alignas(64) E4m3Table {
  uint8_t high[128];
  uint8_t low[128];
};
extern const E4m3Table kE4m3Table;

// Rows [row, row + num_rows) of one key-value head.
struct AttentionTask {
  const AttentionParams* params;
  int row, num_rows;
  int kv_head;
};
// Rows of bf16 at equal distances. No methods: they would be inline functions (see above).
struct Rows {
  const bf16* first;
  size_t stride;  // in elements
};

struct KernelTable {
  // out[t][r] = x[t] * w[r] for r in [row_begin, row_end), t in [0, num_tokens). REQUIRES: 1 <=
  // num_tokens <= kTokenBlock. row_begin is a multiple of 16, and so is row_end unless it is
  // num_rows; out[t] points to the value of row 0.
  void (*matmul)(const MatrixView& w, int row_begin, int row_end, const Rows& x, int num_tokens,
                 float* const* out);
  // out[i] = bf16(silu(gate[i]) * up[i])
  void (*swiglu)(const float* gate, const float* up, int count, bf16* out);
  // out[i] = sum over k of weight[k] * rows[k][i], k ascending, the first by a product, the others
  // by fma
  void (*weighted_sum)(const float* const* rows, const float* weights, int num_rows, int count,
                       float* out);
  // One row; exactly one of out_bf16 and out_f32 is not null.
  void (*rms_norm)(const float* x, const float* weight, float eps, int count, bf16* out_bf16,
                   float* out_f32);
  void (*rope)(const float* cos_sin, int half, float* x);
  // scores[t * E + e] = sigmoid(x[t] * w[e])
  void (*router_scores)(const bf16* x, const float* w, int num_tokens, int hidden, int num_experts,
                        float* scores);
  void (*attention)(const AttentionTask& task);
  void (*to_bf16)(const float* x, int count, bf16* out);
  // The index of the largest value (NaN counts as -inf), ties to the lower; 0 if all are -inf.
  int (*arg_max)(const float* x, int count);
  // sum of exp(x - max); NaN counts as -inf
  float (*sum_exp)(const float* x, int count, float max);
  // x[i] = exp(x[i] - max)
  void (*exponentials)(float* x, int count, float max);
  // out[i] = x[i] / temperature, NaN becomes -inf
  void (*divide)(const float* x, int count, float temperature, float* out);
  // x[i] += Gumbel noise of token first_token + i; first_token a multiple of 4
  void (*add_gumbel)(float* x, int32_t first_token, int count, uint64_t seed, int64_t position);
  // Writes the indices whose value is >= threshold, ascending; returns their number.
  int (*select_at_least)(const float* x, int count, float threshold, int32_t* indices);
  // To be called by the thread that has called matmul or attention, when it is done for now.
  void (*release_tiles)();
  // Pairs of row and query head that attention reads a key for at once: what a task is made of.
  int attention_queries;
};

const KernelTable& Active();
extern const KernelTable kScalarKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx512Bf16Kernels;
extern const KernelTable kAmxBf16Kernels;

}  // namespace ultraspeed::kernels
