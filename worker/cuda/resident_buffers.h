// Device memory of the resident engine's rounds.
#pragma once

#include <cstdint>

#include "kernels/cuda/resident/program.h"
#include "worker/cuda/device_memory.h"
#include "worker/cuda/device_weights.h"
#include "worker/model/config.h"

namespace ultraspeed::worker::cuda {

// One GPU's part of a model that several share. A rank alone stands for the others: sums go to
// `num_ranks` inboxes of its own, and feature rows of one rank stand for those of all.
struct ResidentRanks {
  int num_ranks = 1;
  int index = 0;
  bool alone = false;
};

// What phases write and read.
struct ResidentBuffers {
  ResidentBuffers(const ModelConfig& config, const TargetWeights& target,
                  const DrafterWeights& drafter, int64_t positions, const ResidentRanks& ranks,
                  DeviceArena& arena);

  float* residual;  // [rows, H]
  kernels::cuda::resident::RowMail rows;
  float* qkv;               // [rows, widest projection]
  kernels::bf16* attended;  // [rows, widest Hq * Dv]
  float* gate_up;           // [rows, 2F] of the dense MLPs
  float* context_kv;        // [rows, layers * 2 * Hkv * D]
  kernels::bf16* taps;      // [rows, taps * H]
  kernels::cuda::resident::MoeMail moe;
  float* logits;         // [rows, V]
  float* gates;          // [band rows, R] of the drafter's Markov head
  uint2* chain_words;    // as ChainTask's
  float4* carry;         // [bands, tiles, 2, 32] sums of products wider than one pass
  int64_t band_carries;  // from one band's to the next's
  void* partials;        // of attention over long contexts
  int partials_stride;
  kernels::cuda::resident::RowChoice* choices;  // as Program's
  kernels::cuda::resident::RowMass* masses;
  // Memory only; over the vocabulary of all ranks.
  kernels::cuda::resident::WholeRow whole_row;
  uint32_t* words;  // counters, decision, abort word
  uint2* inbox;     // null with one rank
  size_t inbox_rank_words;
  kernels::cuda::resident::RankMail* mail;  // [ranks]
};

}  // namespace ultraspeed::worker::cuda
