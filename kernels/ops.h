// Every operation of the target and of the drafter, declared once.
//
// Who calls it: the executors in worker/. What it knows: pointers, shapes and numbers; nothing of
// models, requests or threads' owners.
//
// Shape letters: T rows (tokens) of a call, H hidden, Hq/Hkv query/key-value heads, D head dim
// (qk), Dv head dim (v), F ffn width, E experts, K experts per token, V vocabulary, P tokens per KV
// page, N/Kdim output/input width of a matrix.
//
// Numerics (docs/MODEL.md): matrix inputs are bf16, weights exact (FP8 code x block scale, MXFP4
// code x E8M0, bf16), accumulation and outputs fp32. Every reduction has one fixed order that
// depends neither on T nor on the thread count, so a row's result is the same bits alone or in a
// batch. That is what makes speculation lossless. The order is one for all instruction sets but
// AMX, which has its own for matrix products and attention.
//
// Ops never allocate (PackedMatrix::Pack and BuildRopeTable do); a workspace is at least 8-byte
// aligned. Preconditions are checked with KERNELS_CHECK, which aborts with the operands.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace ultraspeed::kernels {

using bf16 = uint16_t;  // upper half of an IEEE fp32

// Persistent worker threads that split the rows of one operation; see thread_pool.h.
class ThreadPool;

enum class WeightFormat : uint8_t { kBf16, kFp8Block128, kMxfp4 };

// ---- Weights
// --------------------------------------------------------------------------------------------------------------------

// A weight as it lies in the checkpoint, row-major [num_rows, num_cols].
struct CheckpointMatrix {
  WeightFormat format;
  int num_rows;
  int num_cols;  // multiple of 32
  const void*
      codes;  // bf16 [N, Kdim] | u8 e4m3fn [N, Kdim] | u8 [N, Kdim/2], low nibble = even column
  const float* scales_f32;  // kFp8Block128: [ceil(N/128), ceil(Kdim/128)], blocks counted from this
                            // matrix's first row; else null
  const uint8_t* scales_e8m0;  // kMxfp4: [N, Kdim/32], value 2^(s-127); else null
};

// A weight repacked for streaming; move-only, owns its bytes. Layout is private to
// kernels/cpu/matmul.cc.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  PackedMatrix(PackedMatrix&&) = default;
  PackedMatrix& operator=(PackedMatrix&&) = default;
  static PackedMatrix Pack(const CheckpointMatrix& source);
  // A kBf16 matrix in half the bytes, as kFp8Block128: a block's scale is its largest magnitude
  // over 448, e4m3's largest, and a weight the nearest code, ties to the even one. NaN stays NaN;
  // an infinite weight leaves its block none that is finite.
  static PackedMatrix RoundToFp8(const PackedMatrix& matrix);

  int num_rows() const { return num_rows_; }
  int num_cols() const { return num_cols_; }
  WeightFormat format() const { return format_; }
  size_t bytes() const { return bytes_; }  // what one pass over the matrix reads
  // kMxfp4: every weight, with its scale, is zero or a normal bf16.
  bool exact_in_bf16() const { return exact_in_bf16_; }
  const uint8_t* data() const { return data_.get(); }  // 64-byte aligned

 private:
  WeightFormat format_ = WeightFormat::kBf16;
  int num_rows_ = 0;
  int num_cols_ = 0;
  size_t bytes_ = 0;
  bool exact_in_bf16_ = true;
  std::shared_ptr<uint8_t[]> data_;  // kernels/cpu/large_pages.h
};

// ---- Matrix products
// ------------------------------------------------------------------------------------------------------------

// out[T, N] = x[T, Kdim] * w[N, Kdim]^T.
void MatMul(ThreadPool& pool, const PackedMatrix& w, const bf16* x /*[T, x_stride]*/,
            int num_tokens, int x_stride, float* out /*[T, out_stride]*/, int out_stride);

// The three matrices of one expert (or of the dense layer's MLP).
struct MlpWeights {
  PackedMatrix gate;  // [F, H]
  PackedMatrix up;    // [F, H]
  PackedMatrix down;  // [H, F]
};

// out[T, H] = down(bf16(silu(gate x) * (up x))). workspace: MlpWorkspaceBytes.
void Mlp(ThreadPool& pool, const MlpWeights& w, const bf16* x /*[T, H]*/, int num_tokens,
         float* out /*[T, H]*/, void* workspace);
size_t MlpWorkspaceBytes(int num_tokens, int ffn_width, int hidden);

// out[T, H] = sum over k of weights[t, k] * expert(ids[t, k])(x[t]), summed in ascending expert id
// per token. REQUIRES: ids of one token are ascending and distinct.
struct MoeParams {
  const MlpWeights* experts;  // [E]
  int num_experts;
  int experts_per_token;
  const bf16* x;                // [T, H]
  const int32_t* expert_ids;    // [T, K] ascending
  const float* expert_weights;  // [T, K]
  int num_tokens;
  float* out;       // [T, H]
  void* workspace;  // MoeWorkspaceBytes
};
void MixtureOfExperts(ThreadPool& pool, const MoeParams& params);
size_t MoeWorkspaceBytes(int num_tokens, int experts_per_token, int num_experts, int ffn_width,
                         int hidden);

// ---- Norms, rotary, router
// -------------------------------------------------------------------------------------------------------

// out = bf16(x * rsqrt(mean(x^2) + eps) * weight), one row at a time.
void RmsNorm(ThreadPool& pool, const float* x /*[T, H]*/, const float* weight /*[H]*/, float eps,
             int num_tokens, int hidden, bf16* out /*[T, H]*/);

// x = x * rsqrt(mean(x^2) + eps) * weight in fp32 over each head of D values, in place (drafter's
// q_norm and k_norm).
void HeadRmsNorm(float* x /*[num_heads, D] at head_stride*/, int num_heads, int head_dim,
                 int head_stride, const float* weight /*[D]*/, float eps);

// cos/sin of position * theta^(-2i/rotary_dims), i in [0, rotary_dims/2): computed in double,
// stored fp32.
struct RopeTable {
  int rotary_dims = 0;
  int num_positions = 0;
  std::vector<float> cos_sin;  // [num_positions, rotary_dims]: cosines, then sines
};
RopeTable BuildRopeTable(double theta, int rotary_dims, int num_positions);

// Rotates pairs (i, i + rotary_dims/2) of each head in place (NeoX form); further dims untouched.
void Rope(const RopeTable& table, int position, float* x /*[num_heads, D] at head_stride*/,
          int num_heads, int head_stride);

// logits = x * w^T in fp32 (E rows of H); s = sigmoid(logits); chooses the K largest s + bias
// (ties: lower id) and writes them in ascending id with weights s / (sum of chosen s + 1e-20).
// Source: MiMo-V2-Flash report, section 2 (noaux_tc, one group).
void RouteTopK(ThreadPool& pool, const bf16* x /*[T, H]*/, const float* w /*[E, H]*/,
               const float* bias /*[E]*/, int num_tokens, int hidden, int num_experts,
               int experts_per_token, int32_t* expert_ids /*[T, K]*/,
               float* expert_weights /*[T, K]*/);

// ---- Attention
// -------------------------------------------------------------------------------------------------------------------

// Where the keys and values of one sequence and layer lie. A page has P positions of one head after
// the other, so that who reads a head's reads on. Full layers have one entry per page, a sliding
// layer's ring is one page of ring size.
struct KvView {
  bf16* k;  // [pages, Hkv, P, D]
  bf16* v;  // [pages, Hkv, P, Dv]
  const int32_t* pages;
  int num_pages;
  int page_tokens;  // P
};
// Row of `k` and `v` that position p of a head is: (pages[(p / P) % num_pages] * Hkv + head) * P +
// p % P.
size_t KvRow(const KvView& view, int num_kv_heads, int head, int64_t position);

// One row's attention: query row t at `query_position` sees keys [first_key, last_key] of `kv`, and
// if block_k is not null also block_rows more keys that lie outside the cache (the drafter's own
// block).
struct AttentionRow {
  const KvView* kv;
  int first_key;
  int last_key;         // inclusive; first_key - 1 = none
  const bf16* block_k;  // [Hkv, block_rows, D] or null
  const bf16* block_v;  // [Hkv, block_rows, Dv] or null
  int block_rows;
};

struct AttentionParams {
  const bf16* q;             // [T, Hq, D], scaled by nothing
  const AttentionRow* rows;  // [T]
  const float* sinks;        // [Hq] logits that join the softmax's denominator, or null
  int num_tokens, num_q_heads, num_kv_heads, qk_head_dim, v_head_dim;
  float score_scale;  // 1/sqrt(D)
  bf16* out;          // [T, Hq, Dv]
};
// Keys are visited in fixed chunks from first_key on, with an online softmax: one order whatever
// else is in the batch.
void Attention(ThreadPool& pool, const AttentionParams& params);

// ---- Sampling
// --------------------------------------------------------------------------------------------------------------------

// How one row is turned into a token. Plain data; the worker validates the ranges.
struct SamplingSpec {
  float temperature = 0.0f;  // 0 = greedy
  int top_k = 0;             // 0 = off
  float top_p = 1.0f;
  uint64_t seed = 0;
};

// How likely the target is at least to choose what a drafter with the same noise chose, however
// unlikely the drafter held it: of drafts that the bundled model's drafter gave less than 0.05,
// 0.06 were accepted greedily, 0.13 at temperature 0.3, 0.25 at 0.7 and 0.27 at 1.
constexpr float LeastDraftOdds(const SamplingSpec& spec) {
  return 0.3f * (spec.temperature < 1.0f ? spec.temperature : 1.0f);
}

struct TokenChoice {
  int32_t token;
  float logprob;  // of the unprocessed distribution
};

// Gumbel-max: argmax over the kept tokens of logits/temperature + GumbelNoise(seed, position,
// token), which is an exact draw from the processed distribution (temperature, then top-k, then
// top-p). Greedy: argmax; ties take the lower id. `position` is the absolute position of the token
// being chosen. Drafter and target call this with the same spec and position, so their choices
// coincide as often as a coupling without communication allows (drafter-invariant speculative
// sampling, Daliri et al. 2024). `noise`: [V], that of the seed and the position, if it is there
// already.
TokenChoice SampleToken(const float* logits /*[V]*/, int num_tokens_in_vocabulary,
                        const SamplingSpec& spec, int64_t position, bool want_logprob,
                        void* workspace, const float* noise = nullptr);
size_t SampleWorkspaceBytes(int num_tokens_in_vocabulary);

// Standard Gumbel noise as a pure function: Philox4x32-10 keyed by seed, counter (token / 4,
// position), one lane per token, and a logarithm made of fused multiply-adds only, so CPU and GPU
// produce the same bits.
float GumbelNoise(uint64_t seed, int64_t position, int32_t token);
// Of `count` tokens from first_token on, a multiple of 4.
void GumbelNoise(uint64_t seed, int64_t position, int32_t first_token, int count, float* noise);

// The n most likely tokens and their log-probabilities, descending (ties: lower id).
void TopLogprobs(const float* logits /*[V]*/, int num_tokens_in_vocabulary, int n,
                 int32_t* tokens /*[n]*/, float* logprobs /*[n]*/);

// ---- Conversions
// -----------------------------------------------------------------------------------------------------------------

bf16 ToBf16(float x);  // round to nearest even
float FromBf16(bf16 x);
void ToBf16(const float* x, int count, bf16* out);
float FromE4m3(uint8_t code);
uint8_t ToE4m3(float x);        // round to nearest even; beyond 448, 448
float FromE2m1(uint8_t code);   // low nibble
float FromE8m0(uint8_t scale);  // 2^(scale-127); 255 is NaN

// What rounding did to a matrix: its relative RMS error is sqrt(error / signal).
struct RoundingError {
  double error = 0;   // sum of squared differences
  double signal = 0;  // sum of squared values
};
// Rounds a matrix of kFp8Block128 to kMxfp4. Each 32 columns of a row take the power of two of the
// OCP MX specification, 2^(floor(log2(largest magnitude)) - 2), or twice that if the sum of squared
// errors becomes smaller: the first one clips magnitudes from 6 to 8 at 6, the second one is
// coarser. Values go to the nearest e2m1 code, ties to the even one. REQUIRES: no NaN codes; finite
// scales.
RoundingError QuantizeToMxfp4(ThreadPool& pool, const CheckpointMatrix& source,
                              uint8_t* codes /*[N, Kdim / 2]*/, uint8_t* scales /*[N, Kdim / 32]*/);

// ---- Machine
// ---------------------------------------------------------------------------------------------------------------------

enum class InstructionSet : uint8_t { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmxBf16 };
InstructionSet DetectInstructionSet();       // the best that CPU and OS support
InstructionSet ActiveInstructionSet();       // what the operations use now
void SetInstructionSet(InstructionSet set);  // REQUIRES: supported; before any matrix is packed.
                                             // Tests and benchmarks only
const char* Name(InstructionSet set);  // "scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16"

}  // namespace ultraspeed::kernels
