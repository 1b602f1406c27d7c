// Every operation of the target and of the drafter on one GPU, declared once: the device twin of
// kernels/ops.h.
//
// Who calls it: worker/cuda. What it knows: device pointers, shapes and numbers. All pointers are
// device memory unless a name says host; every call only enqueues work on `stream`: it never
// allocates, never synchronises, never reads anything back, so any sequence of calls can be
// captured into a CUDA graph. A kernel reads lengths and positions from device memory, and grids
// depend only on the `_max` arguments, so that a captured graph serves every round of its shape.
//
// Shape letters as in kernels/ops.h: T rows of a call, S sequences of a call, H hidden, Hq/Hkv
// heads, D/Dv head dims (qk, v), F ffn width, E experts, K experts per token, V vocabulary, P
// tokens per KV page, N/Kdim output/input width of a matrix, B draft block.
//
// Numerics (docs/MODEL.md): rounding points are those of the CPU executor: matrix inputs bf16,
// weights exact, accumulation and outputs fp32; norm outputs, q, k, v, attention output and SwiGLU
// product bf16. Every reduction has one fixed order that is a function of the operand's shape and
// of absolute positions only, never of T, S or what else is in the batch: a row's result is the
// same bits alone, in a block of 8, in a prefill chunk of any size or beside other sequences. That
// is what makes speculation lossless. The order differs from the CPU's, so CPU and GPU agree to
// rounding, not to the bit.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace ultraspeed::kernels::cuda {

// ---- Weights (linear.cu, experts.cu)

// A weight repacked for streaming. Layout is private to the .cu files; `data` is 256-byte aligned.
struct Matrix {
  WeightFormat format = WeightFormat::kBf16;
  int num_rows = 0;            // N
  int num_cols = 0;            // Kdim, multiple of 32 (kFp8Block128: of 128)
  const void* data = nullptr;  // PackedBytes
};
size_t PackedBytes(WeightFormat format, int num_rows, int num_cols);
// Repacks a checkpoint matrix whose pointers are device memory into `packed` (device, 256-byte
// aligned). `source` may be freed once the stream has passed this point. A product of `packed` may
// only be enqueued once this is done (it fetches weights before the work ahead of it ends). Packed
// matrices of equal width whose num_rows are multiples of 16 and that lie one behind the other are
// one matrix of all their rows. kMxfp4 scales above 160 (weights of 2^33) saturate.
Matrix Pack(const CheckpointMatrix& source, void* packed, cudaStream_t stream);

// All experts of one layer. Gate and up rows interleave so that SwiGLU happens in registers.
struct Experts {
  WeightFormat format = WeightFormat::kMxfp4;  // or kFp8Block128
  int num_experts = 0;
  int ffn_width = 0;  // F, multiple of 32 (kFp8Block128: of 128)
  int hidden = 0;     // H
  const void* gate_up = nullptr;
  const void* down = nullptr;
};
struct ExpertBytes {
  size_t gate_up = 0, down = 0;  // of one expert; expert e lies at e times this
};
ExpertBytes PackedExpertBytes(WeightFormat format, int ffn_width, int hidden);
// Repacks expert `expert`: gate, up [F, H] and down [H, F] in checkpoint form, device pointers.
void PackExpert(const CheckpointMatrix& gate, const CheckpointMatrix& up,
                const CheckpointMatrix& down, int expert, const Experts& experts,
                cudaStream_t stream);

// ---- Matrix products (linear.cu)

// out[T, N] = x[T, Kdim] * w[N, Kdim]^T, fp32. T >= 0; any N; x and out rows are dense.
// workspace: LinearWorkspaceBytes (may be 0 bytes; null allowed then).
void Linear(const Matrix& w, const bf16* x, int num_tokens, float* out, void* workspace,
            cudaStream_t stream);
size_t LinearWorkspaceBytes(const Matrix& w, int num_tokens_max);

// out[T, F] = bf16(silu(gate) * up) of gate_up [T, 2F] fp32: all gate columns, then all up columns.
// The dense MLP is Linear (gate and up as one matrix of 2F rows), SwiGlu, Linear.
void SwiGlu(const float* gate_up, int num_tokens, int ffn_width, bf16* out, cudaStream_t stream);

// ---- Mixture of experts (router.cu, experts.cu)

// The router [E, H] as its product takes it (router_product.cuh), times the weights of the norm
// before it. All pointers are the device's; H is a multiple of 16.
void PackRouter(const float* w /*[E, H]*/, const float* norm /*[H]*/, int num_experts, int hidden,
                float* packed /*[PackedRouterFloats]*/, cudaStream_t stream);
size_t PackedRouterFloats(int num_experts, int hidden);

// As kernels::RouteTopK of the normed rows, which are not rounded here: fp32 logits, sigmoid, K
// largest of score + bias (ties: lower id), written in ascending id with weights score / (sum of
// the chosen + 1e-20).
struct RouteParams {
  const float* residual;  // [T, H], rounded to bf16 on the way in
  const float* scales;    // [T] AddNorm's
  const float* packed;    // [E, H] by PackRouter
  const float* bias;      // [E]
  int num_tokens, hidden, num_experts, experts_per_token;
  int32_t* expert_ids;    // [T, K]
  float* expert_weights;  // [T, K]
  void* workspace;        // RouteWorkspaceBytes
};
void RouteTopK(const RouteParams& params, cudaStream_t stream);
// Benchmarks: puts `distinct` experts of the layer in place of the chosen ones
// (forced_experts.cuh), not ascending.
void ForceExperts(int num_tokens, int experts_per_token, int num_experts, int distinct, int shift,
                  int32_t* expert_ids /*[T, K]*/, cudaStream_t stream);
size_t RouteWorkspaceBytes(int num_tokens_max, int num_experts);

// out[T, H] = sum over k in ascending expert id of weights[t, k] * expert(ids[t, k])(x[t]), each
// expert's output in fp32. Rows are grouped by expert on the device: an expert's weights are read
// once however many rows chose it.
struct MoeParams {
  Experts experts;
  int experts_per_token;        // K
  const bf16* x;                // [T, H]
  const int32_t* expert_ids;    // [T, K] ascending
  const float* expert_weights;  // [T, K]
  int num_tokens;               // T
  float* out;                   // [T, H]
  void* workspace;              // MoeWorkspaceBytes, 256-byte aligned
};
void MixtureOfExperts(const MoeParams& params, cudaStream_t stream);
size_t MoeWorkspaceBytes(const Experts& experts, int experts_per_token, int num_tokens_max);

// ---- Copies (copies.cu)

// Device memory; pointers and size are multiples of 16. Copies of a call do not overlap.
struct Copy {
  void* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;
};
void CopyAll(const std::vector<Copy>& copies, cudaStream_t stream);

// ---- Rows (rows.cu)

// The embeddings of tokens [first_token, first_token + num_tokens).
struct EmbeddingTable {
  const bf16* rows;  // [num_tokens, H]
  int first_token, num_tokens;
};
// out[t] = fp32(embedding of token[t]); tokens that are not in the table give zeros.
void Embed(const EmbeddingTable& table, const int32_t* tokens /*[T]*/, int num_tokens, int hidden,
           float* out /*[T, H]*/, cudaStream_t stream);

// Drafter input: row s*B is the embedding of anchor[s], the other B-1 rows of block s the mask
// embedding (null: zeros).
void EmbedBlocks(const EmbeddingTable& table, const bf16* mask /*[H] or null*/,
                 const int32_t* anchors /*[S]*/, int num_blocks, int block, int hidden,
                 float* out /*[S * B, H]*/, cudaStream_t stream);

// residual += delta (delta may be null: no addition), then, each if its output is not null:
// tap[t, tap_offset + i] = bf16(residual[t, i]) with row stride tap_stride, and normed = bf16(RMS
// norm of residual * weight). One kernel, one row per block.
struct AddNormParams {
  float* residual;      // [T, H]
  const float* delta;   // [T, H] or null
  const float* weight;  // [H]
  float epsilon;
  int num_tokens, hidden;
  bf16* normed;  // [T, H] or null
  bf16* tap;     // [T, tap_stride] or null
  int tap_offset, tap_stride;
  float* scales = nullptr;  // [T] or null: what the norm multiplies a row by, before the weights
};
void AddNorm(const AddNormParams& params, cudaStream_t stream);

// out[i] = bf16(RMS norm of residual[rows[i]]): the rows that get logits.
void GatherNorm(const float* residual /*[T, H]*/, const int32_t* rows /*[n]*/, int num_rows,
                const float* weight /*[H]*/, float epsilon, int hidden, bf16* out /*[n, H]*/,
                cudaStream_t stream);

// ---- Keys, values, attention (kv_cache.cu, attention.cu)

enum class KvFormat : uint8_t { kBf16, kFp8 };  // kFp8: e4m3, unscaled, saturating

// The keys and values of one layer: pages of P tokens, layout private to the .cu files.
struct KvCache {
  void* k = nullptr;  // KvCacheBytes(..., D)
  void* v = nullptr;  // KvCacheBytes(..., Dv)
  KvFormat format = KvFormat::kBf16;
  int page_tokens = 0;   // P: 64
  int num_kv_heads = 0;  // Hkv
  int qk_head_dim = 0, v_head_dim = 0;
};
size_t KvCacheBytes(KvFormat format, int64_t num_pages, int page_tokens, int num_kv_heads,
                    int head_dim);

// The sequences of a pass, in device memory. Rows of a sequence are consecutive and ascend in
// position: row first_row + i is position + i.
struct Sequences {
  int num_sequences;         // S, host value
  int rows_max;              // host upper bound of num_rows of any of them (grids)
  int64_t position_end_max;  // host upper bound of position + num_rows of any of them (grids)
  const int32_t* first_row;  // [S]
  const int32_t* num_rows;   // [S], may be 0
  const int64_t* position;   // [S] of the first row
  // Page of position p in a full layer: full_pages[s * full_pages_stride + p / P]. In a sliding
  // layer or the drafter's cache, a ring: slot[s] * ring_pages + (p / P) % ring_pages.
  const int32_t* full_pages;
  int full_pages_stride;
  const int32_t* slot;  // [S]
};
enum class KvPlace : uint8_t { kPaged, kRing };

// q, k, v of a fused projection: rotary (NeoX pairs, first rotary_dims) on q and k, value scale on
// v, bf16, q to `q`, k and v into the cache at their positions (or, with `block_k`, dense).
// Optional RMS norm over each head of q and k before rotary (drafter). fp32 until the last
// rounding.
struct ProjectParams {
  const float* qkv;  // [T, row_width]
  int row_width;
  // Column of head 0 of kv group r is r * group_stride; inside: q heads of the group, k, v. With
  // group_stride 0 the layout is all q heads, all k heads, all v heads (drafter). q_heads = 0 with
  // group_stride 0: only k and v (the drafter's context rows).
  int group_stride;
  int num_q_heads, num_kv_heads, qk_head_dim, v_head_dim, rotary_dims;
  const float* rope;  // [positions, rotary_dims]: cosines, then sines (RopeTable::cos_sin)
  float value_scale;
  const float* q_norm;  // [D] or null
  const float* k_norm;  // [D] or null
  float epsilon;
  Sequences sequences;
  const int32_t* num_rows_kept;  // [S] or null: rows of a sequence past this are not written to the
                                 // cache (taps of rejected drafts)
  bf16* q;                       // [T, Hq, D] or null
  KvCache cache;                 // cache.k null: nothing cached
  KvPlace place;
  int ring_pages;
  bf16* block_k;  // [T, Hkv, D] or null
  bf16* block_v;  // [T, Hkv, Dv] or null
};
void ProjectQkv(const ProjectParams& params, int num_tokens, cudaStream_t stream);

// Attention of all rows. Row at position p sees cache keys [max(0, p - window + 1), p] (window 0:
// [0, p]). Drafter form (block_k not null): cache keys [max(0, p - window + 1), position of the
// sequence's first row - 1] and all rows of its own block in block_k/block_v, both ways.
struct AttentionParams {
  const bf16* q;  // [T, Hq, D]
  KvCache cache;
  KvPlace place;
  int ring_pages;
  int window;           // 0 = full
  const float* sinks;   // [Hq] logits that join the softmax's denominator, or null
  const bf16* block_k;  // [T, Hkv, D] or null
  const bf16* block_v;  // [T, Hkv, Dv] or null
  Sequences sequences;
  int num_q_heads;
  float score_scale;  // 1 / sqrt(D)
  bf16* out;          // [T, Hq, Dv]
  void* workspace;    // AttentionWorkspaceBytes
};
void Attention(const AttentionParams& params, cudaStream_t stream);
// Partial results of the segments of long contexts. `position_end_max` and `rows_max` as in
// Sequences; `num_tokens_max` rows of the call.
size_t AttentionWorkspaceBytes(int num_tokens_max, int num_q_heads, int v_head_dim,
                               int64_t position_end_max);

// ---- Sampling and acceptance (sampling.cu)

// One row of logits that becomes a token. Same meaning as kernels::SamplingSpec plus the place.
struct SampleRow {
  SamplingSpec spec;
  int64_t position;      // of the token being chosen
  int32_t want_logprob;  // 0 or 1
};
// tokens[i] = what kernels::SampleToken chooses for logits row i over the first `vocabulary_used`
// tokens; `banned_token` (-1 = none) is never chosen. Noise bits equal the CPU's; sums over the
// vocabulary have their own fixed order. logprobs may be null.
void Sample(float* logits /*[n, V]*/, int num_rows, int vocabulary, int vocabulary_used,
            int32_t banned_token, const SampleRow* rows /*[n]*/, int32_t* tokens /*[n]*/,
            float* logprobs /*[n]*/, void* workspace, cudaStream_t stream);
size_t SampleWorkspaceBytes(int num_rows_max, int vocabulary);

// Logits of tokens whose bit is not set become a huge negative number, which is not chosen while
// any other is there. `masks`: token t of a row is bit t % 32 of word t / 32.
void MaskLogits(float* logits /*[n, V]*/, int num_rows, int vocabulary, int vocabulary_used,
                const uint32_t* masks /*[n, (vocabulary_used + 31) / 32]*/, cudaStream_t stream);

// The `n` most likely tokens of each row, descending (ties: lower id), with log-probabilities under
// the unprocessed distribution; n <= 8.
void TopLogprobs(const float* logits /*[rows, V]*/, int num_rows, int vocabulary,
                 int vocabulary_used, int n, int32_t* tokens /*[rows, n]*/,
                 float* logprobs /*[rows, n]*/, cudaStream_t stream);

// ---- The drafter's Markov head (markov.cu)

// DSpark, arXiv 2607.05147: the token before a row, e = previous[token], gives the row's logits a
// bias next (g * e), with g = sigmoid(gate + gate_previous e + gate_bias), or 1 without a gate.
// Elements of g * e are rounded to bf16.
struct MarkovHead {
  int rank;              // R, a multiple of 32 up to 1024
  const bf16* previous;  // [V, R]
  Matrix next;           // [V, R], BF16
  Matrix gate_previous;  // [R, R], BF16; no rows: there is no gate
  const float* gate_bias;
};
// `gates`: [T, R] of the rows' hidden states; null without a gate.
void AddMarkovBias(const MarkovHead& head, const int32_t* previous_tokens /*[T]*/,
                   const float* gates, int num_rows, float* logits /*[T, V]*/, cudaStream_t stream);

// drafts [S, B-1] and, with each sequence's anchor before them, block_tokens [S, B], of drafts that
// lie by place, [B-1, S].
void GatherBlocks(const int32_t* anchors /*[S]*/, const int32_t* drafts_by_place, int num_sequences,
                  int block, int32_t* block_tokens, int32_t* drafts, cudaStream_t stream);

// num_accepted[s] = length of the longest prefix of the block's B-1 drafts that the target chose
// itself; kept[s] = 1 + that: rows whose state is committed. chosen [S, B] is the target's choice
// after each row of block s, drafts [S, B-1].
void Accept(const int32_t* drafts, const int32_t* chosen, int num_sequences, int block,
            int32_t* num_accepted /*[S]*/, int32_t* kept /*[S]*/, cudaStream_t stream);

}  // namespace ultraspeed::kernels::cuda
