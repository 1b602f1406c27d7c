// The warpgroup's bf16 tensor-core product with fp32 accumulation: one operand from registers (or,
// for attention's scores, shared memory), the other from shared memory.
//
// A product of 16 columns gives the same bits as mma.m16n8k16 of the same operands (measured on
// H200: 82 million sums over normal, widely spread and subnormal operands, none different;
// linear_test compares the forms that use them), so whether a product goes through warps or through
// warpgroups never shows in a result.
//
// All four warps of an aligned group of four call every function. Products run behind the caller:
// between a fence and the wait for its commit group, neither `sums` nor `a` may be touched.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/copy.cuh"

namespace ultraspeed::kernels::cuda {

inline constexpr int kWarpgroupThreads = 128;

// Orders earlier accesses to registers and to `sums` before the next product.
__device__ __forceinline__ void FenceProducts() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kPending of the newest commit groups are unfinished; HoldSums of what they
// wrote comes next.
template <int kPending>
__device__ __forceinline__ void WaitProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from reading sums before a wait.
template <int kTiles>
__device__ __forceinline__ void HoldSums(float (&sums)[kTiles][4]) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) asm volatile("" : "+f"(sums[i][j])::"memory");
  }
}

// Operands lie as rows of 128 bytes = 64 columns, eight rows to 1,024 aligned bytes, 16-byte piece
// c of row r at c ^ r % 8. `address` is that of the first of 16 rows that a product adds over; the
// next 64 columns lie `part_bytes` on.
__device__ __forceinline__ uint64_t RowsDescriptor(uint32_t address, int part_bytes) {
  constexpr uint64_t kSwizzle128Bytes = uint64_t{1} << 62;
  constexpr uint64_t kEightRows = uint64_t{1024 / 16} << 32;
  return kSwizzle128Bytes | kEightRows | static_cast<uint64_t>(part_bytes / 16) << 16 |
         (address & 0x3ffffu) >> 4;
}
// Of 16 columns that a product adds over, a row each token (or query): `address` is that of the
// first of them in row 0. Such an operand has no second part.
__device__ __forceinline__ uint64_t InputDescriptor(uint32_t address) {
  constexpr int kUnused = 16;
  return RowsDescriptor(address, kUnused);
}

#define ULTRASPEED_SUMS1(i) "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
#define ULTRASPEED_SUMS4(i) \
  ULTRASPEED_SUMS1(i), ULTRASPEED_SUMS1(i + 1), ULTRASPEED_SUMS1(i + 2), ULTRASPEED_SUMS1(i + 3)

// sums[c] (+)= a[16 x 16 of this warp] * inputs[16 x 8 tokens of column tile c]; `accumulate` false
// starts from zero. Lanes hold a and each sums[c] as those of Mma.
__device__ __forceinline__ void AddProduct(float (&sums)[2][4], const uint32_t (&a)[4],
                                           uint64_t inputs, bool accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %13, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, p, 1, 1, 0; }"
      : ULTRASPEED_SUMS1(0), ULTRASPEED_SUMS1(1)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(inputs), "r"(int{accumulate}));
}
__device__ __forceinline__ void AddProduct(float (&sums)[4][4], const uint32_t (&a)[4],
                                           uint64_t inputs, bool accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, p, 1, 1, "
      "0; }"
      : ULTRASPEED_SUMS4(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(inputs), "r"(int{accumulate}));
}
__device__ __forceinline__ void AddProduct(float (&sums)[8][4], const uint32_t (&a)[4],
                                           uint64_t inputs, bool accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
      "{%32,%33,%34,%35}, %36, p, 1, 1, 0; }"
      : ULTRASPEED_SUMS4(0), ULTRASPEED_SUMS4(4)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(inputs), "r"(int{accumulate}));
}
__device__ __forceinline__ void AddProduct(float (&sums)[16][4], const uint32_t (&a)[4],
                                           uint64_t inputs, bool accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
      "{%64,%65,%66,%67}, %68, p, 1, 1, 0; }"
      : ULTRASPEED_SUMS4(0), ULTRASPEED_SUMS4(4), ULTRASPEED_SUMS4(8), ULTRASPEED_SUMS4(12)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(inputs), "r"(int{accumulate}));
}

// Of 64 columns (m64n64k16) with both operands in shared memory, a as rows of 128 bytes, too.
__device__ __forceinline__ void AddProduct(float (&sums)[8][4], uint64_t a, uint64_t inputs,
                                           bool accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
      "%32, %33, p, 1, 1, 0, 0; }"
      : ULTRASPEED_SUMS4(0), ULTRASPEED_SUMS4(4)
      : "l"(a), "l"(inputs), "r"(int{accumulate}));
}
// The same of inputs whose rows are what the product adds over: sums[c] (+)= a * rows[16 x 8
// columns of tile c].
__device__ __forceinline__ void AddProductOfRows(float (&sums)[16][4], const uint32_t (&a)[4],
                                                 uint64_t rows, bool accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
      "{%64,%65,%66,%67}, %68, p, 1, 1, 1; }"
      : ULTRASPEED_SUMS4(0), ULTRASPEED_SUMS4(4), ULTRASPEED_SUMS4(8), ULTRASPEED_SUMS4(12)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(rows), "r"(int{accumulate}));
}

#undef ULTRASPEED_SUMS4
#undef ULTRASPEED_SUMS1

// A warpgroup's share of the registers that the thread block was launched with: multiples of 8.
template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace ultraspeed::kernels::cuda
