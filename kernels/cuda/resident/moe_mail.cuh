// What the MoE phases tell each other across blocks (MoeMail): two mailboxes take turns.
#pragma once

#include "kernels/cuda/device/flagged_words.cuh"
#include "kernels/cuda/resident/block.cuh"

namespace ultraspeed::kernels::cuda::resident {

// Of the phase's layer, or of the one after it.
__device__ __forceinline__ uint32_t* RouterPartials(const Block& block, const Phase& phase,
                                                    int later = 0) {
  const MoeMail& mail = block.program().moe;
  const uint32_t layer = block.SinceStart(&Tally::moe_layers, phase) + later;
  return mail.partials + layer % 2 * mail.num_partials;
}
__device__ __forceinline__ uint2* MoeScores(const Block& block, const Phase& phase, int later = 0) {
  const MoeMail& mail = block.program().moe;
  const uint32_t layer = block.SinceStart(&Tally::moe_layers, phase) + later;
  return mail.scores + layer % 2 * kNumScores;
}
__device__ __forceinline__ uint32_t* MoeActivations(const Block& block, const Phase& phase,
                                                    int later = 0) {
  const MoeMail& mail = block.program().moe;
  const uint32_t layer = block.SinceStart(&Tally::moe_layers, phase) + later;
  return mail.activations + layer % 2 * mail.num_activations;
}

// The finishers of all blocks empty the mail of the layer before, which everybody has read, for the
// layer after this one: who writes it then has seen this block arrive in between.
__device__ __forceinline__ void EmptyOtherMail(const Block& block, const Phase& phase) {
  const MoeMail& mail = block.program().moe;
  const auto fill = [&](void* words, size_t bytes, uint32_t value) {
    const uint32_t count = bytes / sizeof(uint4);
    const uint32_t thread = Thread() - kFirstFinisherWarp * kWarpLanes;
    for (uint32_t i = block.index + thread * block.num_blocks; i < count;
         i += kFinisherThreads * block.num_blocks) {
      static_cast<uint4*>(words)[i] = {value, value, value, value};
    }
  };
  fill(RouterPartials(block, phase, 1), mail.num_partials * sizeof(uint32_t), kNotArrived);
  fill(MoeScores(block, phase, 1), kNumScores * sizeof(uint2), 0);
  fill(MoeActivations(block, phase, 1), mail.num_activations * sizeof(uint32_t), kNotArrived);
}

}  // namespace ultraspeed::kernels::cuda::resident
