#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/device_matrix.h"
#include "tests/kernels/oracles.h"

namespace ultraspeed::kernels::cuda {
namespace {

using MarkovTest = GpuTest;

// Ranks of one slab and of more, vocabularies that end within a tile.
TEST_F(MarkovTest, AddsWhatTheDefinitionSays) {
  RandomData random(3);
  for (const int rank : {32, 64, 160, 256}) {
    for (const int vocabulary : {40, 333}) {
      for (const bool has_gate : {false, true}) {
        constexpr int kRows = 3;
        const auto width = static_cast<size_t>(rank);
        const TestMatrix next = RandomMatrix(random, WeightFormat::kBf16, vocabulary, rank);
        const TestMatrix gate_previous = RandomMatrix(random, WeightFormat::kBf16, rank, rank);
        const std::vector<bf16> previous = random.Bf16s(static_cast<size_t>(vocabulary) * width);
        const std::vector<float> gates = random.Floats(kRows * width, 1.0f);
        const std::vector<float> bias = random.Floats(width, 1.0f);
        const std::vector<int32_t> tokens = {5, 0, vocabulary - 1};
        const DeviceMatrix device_next(next), device_gate(gate_previous);
        const DeviceArray<bf16> device_previous(previous);
        const DeviceArray<float> device_gates(gates), device_bias(bias);
        const DeviceArray<int32_t> device_tokens(tokens);
        const DeviceArray<float> logits(
            std::vector<float>(kRows * static_cast<size_t>(vocabulary), 2.0f));
        AddMarkovBias({.rank = rank,
                       .previous = device_previous.get(),
                       .next = device_next.matrix,
                       .gate_previous = has_gate ? device_gate.matrix : Matrix{},
                       .gate_bias = device_bias.get()},
                      device_tokens.get(), has_gate ? device_gates.get() : nullptr, kRows,
                      logits.get(), nullptr);
        const std::vector<float> got = logits.ToHost();
        for (size_t t = 0; t < kRows; ++t) {
          std::vector<bf16> state(width);
          const bf16* const embedded = &previous[static_cast<size_t>(tokens[t]) * width];
          for (size_t i = 0; i < width; ++i) {
            const double sum = Dot(gate_previous, static_cast<int>(i), embedded).value;
            const double x = gates[t * width + i] + sum + bias[i];
            const double gate = has_gate ? 1 / (1 + std::exp(-x)) : 1;
            state[i] = ToBf16(static_cast<float>(FromBf16(embedded[i]) * gate));
          }
          for (int token = 0; token < vocabulary; ++token) {
            const Oracle want = Dot(next, token, state.data());
            // An element of the state may be rounded to its other neighbour.
            ASSERT_NEAR(got[t * static_cast<size_t>(vocabulary) + static_cast<size_t>(token)],
                        2 + want.value, 0.004 * want.magnitude)
                << "rank " << rank << " row " << t << " token " << token;
          }
        }
      }
    }
  }
}

TEST_F(MarkovTest, BlocksAreGatheredSequenceAfterSequence) {
  const DeviceArray<int32_t> anchors(std::vector<int32_t>{10, 20});
  const DeviceArray<int32_t> by_place(std::vector<int32_t>{11, 21, 12, 22, 13, 23});
  const DeviceArray<int32_t> block_tokens(8), drafts(6);
  GatherBlocks(anchors.get(), by_place.get(), 2, 4, block_tokens.get(), drafts.get(), nullptr);
  EXPECT_EQ(block_tokens.ToHost(), (std::vector<int32_t>{10, 11, 12, 13, 20, 21, 22, 23}));
  EXPECT_EQ(drafts.ToHost(), (std::vector<int32_t>{11, 12, 13, 21, 22, 23}));
}

}  // namespace
}  // namespace ultraspeed::kernels::cuda
