// A small checkpoint with random weights in memory, whole or damaged, for tests that need no
// trained model (worker/model/checkpoint_writer.h writes large ones).
//
// A test makes one, changes what it wants to see refused, and writes it to a folder that is removed
// with the object.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "worker/model/checkpoint_writer.h"

namespace ultraspeed::worker {

struct SyntheticShape {
  int hidden = 64;
  int num_layers = 4;  // layer 0 dense; the first and the last full, the others sliding
  int num_q_heads = 4;
  int num_kv_heads = 2;
  int qk_head_dim = 64;
  int v_head_dim = 32;
  int window = 16;
  int dense_ffn_width = 96;
  int expert_ffn_width = 64;
  int num_experts = 8;
  int experts_per_token = 3;
  int vocabulary = 128;
  int vocabulary_used = 120;
  int context_tokens = 4096;
  int drafter_layers = 2;  // 0 = no dflash/
  int block_size = 8;
  int drafter_window = 48;
  int drafter_q_heads = 4;
  int drafter_kv_heads = 2;
  int drafter_head_dim = 32;
  int drafter_ffn_width = 96;
  int markov_rank = 0;  // 0: no Markov head
  bool has_markov_gate = false;
  uint64_t seed = 1;
};

// Divides over 1, 2, 4 and 8 ranks.
constexpr SyntheticShape kDividingShape = {.num_q_heads = 16,
                                           .num_kv_heads = 8,
                                           .dense_ffn_width = 1024,
                                           .expert_ffn_width = 256,
                                           .drafter_q_heads = 8,
                                           .drafter_kv_heads = 8,
                                           .drafter_ffn_width = 256,
                                           .markov_rank = 32,
                                           .has_markov_gate = true,
                                           .seed = 5};

// As above over 1, 2 and 4, of dimensions that the GPU's kernels take; the resident engine takes
// the parts of 2 and of 4 ranks.
constexpr SyntheticShape kGpuShape = {.hidden = 256,
                                      .num_q_heads = 16,
                                      .num_kv_heads = 4,
                                      .qk_head_dim = 128,
                                      .v_head_dim = 128,
                                      .window = 128,
                                      .dense_ffn_width = 1024,
                                      .expert_ffn_width = 512,
                                      .num_experts = 16,
                                      .experts_per_token = 4,
                                      .vocabulary = 1024,
                                      .vocabulary_used = 1000,
                                      .drafter_window = 128,
                                      .drafter_q_heads = 8,
                                      .drafter_kv_heads = 4,
                                      .drafter_head_dim = 128,
                                      .drafter_ffn_width = 512,
                                      .seed = 7};

struct SyntheticTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

struct SyntheticCheckpoint {
  boost::json::object config, generation, drafter_config, tokenizer;
  std::map<std::string, SyntheticTensor> target, drafter;
  std::string mask_pickle;   // data.pkl
  std::string mask_storage;  // data/0
  bool write_index = false;  // two target files and an index instead of model.safetensors

  // Writes the folder, which must exist.
  void Write(const std::string& folder) const;
};

ModelConfig ConfigOf(const SyntheticShape& shape);
SyntheticCheckpoint MakeSyntheticCheckpoint(const SyntheticShape& shape);

// Tokens that the default vocabulary uses, without its mask token.
std::vector<int32_t> RandomPrompt(int count, uint64_t seed);

// Of what the tensors say they are, true or not, for tests that damage them.
std::string SafetensorsBytes(const std::map<std::string, SyntheticTensor>& tensors);
void WriteBytes(const std::string& path, const std::string& bytes);

}  // namespace ultraspeed::worker
