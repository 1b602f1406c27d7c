// What the MoE phases tell each other across blocks (MoeMail): two mailboxes take turns.
#pragma once

#include "kernels/cuda/device/flagged_words.cuh"
#include "kernels/cuda/resident/block.cuh"

namespace ultraspeed::kernels::cuda::resident {

// Which of all mailboxes is a band's, of the phase's layer or of the one after it.
__device__ __forceinline__ uint32_t MailOf(const Block& block, const Phase& phase, int band,
                                           int later) {
  const uint32_t layer = block.SinceStart(&Tally::moe_layers, phase) + later;
  return layer % 2 * kBandsMax + band;
}
__device__ __forceinline__ uint32_t* RouterPartials(const Block& block, const Phase& phase,
                                                    int band, int later = 0) {
  const MoeMail& mail = block.program().moe;
  return mail.partials + MailOf(block, phase, band, later) * mail.num_partials;
}
__device__ __forceinline__ uint32_t* MoeScores(const Block& block, const Phase& phase, int band,
                                               int later = 0) {
  return block.program().moe.scores + MailOf(block, phase, band, later) * kNumScores;
}
__device__ __forceinline__ uint32_t* MoePriorities(const Block& block, const Phase& phase, int band,
                                                   int later = 0) {
  return block.program().moe.priorities + MailOf(block, phase, band, later) * kNumScores;
}
__device__ __forceinline__ uint32_t* MoeActivations(const Block& block, const Phase& phase,
                                                    int band, int later = 0) {
  const MoeMail& mail = block.program().moe;
  return mail.activations + MailOf(block, phase, band, later) * mail.num_activations;
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
  const int num_bands = block.program().num_bands;
  fill(RouterPartials(block, phase, 0, 1), num_bands * mail.num_partials * sizeof(uint32_t),
       kNotArrived);
  fill(MoeScores(block, phase, 0, 1), num_bands * kNumScores * sizeof(uint32_t), kNotArrived);
  fill(MoePriorities(block, phase, 0, 1), num_bands * kNumScores * sizeof(uint32_t), 0);
  fill(MoeActivations(block, phase, 0, 1), num_bands * mail.num_activations * sizeof(uint32_t),
       kNotArrived);
}

}  // namespace ultraspeed::kernels::cuda::resident
