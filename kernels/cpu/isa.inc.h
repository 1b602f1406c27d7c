// The body of every isa_*.cc: all inner loops for one instruction set, and their table. REQUIRES:
// ULTRASPEED_ISA, ULTRASPEED_TABLE.
#include <immintrin.h>

#include "kernels/cpu/kernel_table.h"

namespace ultraspeed::kernels {
namespace ULTRASPEED_ISA {
namespace {

// Each builds on those before it.
// clang-format off
#include "kernels/cpu/simd.inc.h"
#include "kernels/cpu/weight_tiles.inc.h"
#include "kernels/cpu/matmul_kernels.inc.h"
#include "kernels/cpu/rows_kernels.inc.h"
#include "kernels/cpu/attention_kernels.inc.h"
#include "kernels/cpu/sampling_kernels.inc.h"
#if defined(__AMX_BF16__)
#include "kernels/cpu/amx_tiles.inc.h"
#include "kernels/cpu/amx_weights.inc.h"
#include "kernels/cpu/matmul_amx.inc.h"
#include "kernels/cpu/attention_amx.inc.h"
constexpr auto* kMatMul = MatMulByTiles;
constexpr auto* kAttention = AttendByTiles;
constexpr int kAttentionQueries = kQueryTile;
#else
constexpr auto* kMatMul = MatMulByVectors;
constexpr auto* kAttention = AttendByVectors;
constexpr int kAttentionQueries = kQueriesAtOnce;
void ReleaseTiles() {}
#endif
// clang-format on

}  // namespace
}  // namespace ULTRASPEED_ISA

const KernelTable ULTRASPEED_TABLE = {
    ULTRASPEED_ISA::kMatMul,          ULTRASPEED_ISA::SwiGlu,        ULTRASPEED_ISA::WeightedSum,
    ULTRASPEED_ISA::RmsNormRow,       ULTRASPEED_ISA::RopeHead,      ULTRASPEED_ISA::RouterScores,
    ULTRASPEED_ISA::kAttention,       ULTRASPEED_ISA::ToBf16Row,     ULTRASPEED_ISA::ArgMax,
    ULTRASPEED_ISA::SumExp,           ULTRASPEED_ISA::Exponentials,  ULTRASPEED_ISA::Divide,
    ULTRASPEED_ISA::AddGumbel,        ULTRASPEED_ISA::SelectAtLeast, ULTRASPEED_ISA::ReleaseTiles,
    ULTRASPEED_ISA::kAttentionQueries};

}  // namespace ultraspeed::kernels
