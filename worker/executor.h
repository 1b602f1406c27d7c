// The boundary between scheduling and arithmetic. Two implementations: worker/cpu and worker/cuda.
//
// Thread: the engine thread only. After Run the executor holds KV for computed + num_tokens tokens
// of each step, plus, where it sampled, for the accepted draft tokens: the new `computed` is
// computed + num_tokens + num_accepted, and the last chosen token is the next anchor. KV of
// rejected drafts is dead and is overwritten by the next round.
//
// A layer that sees a window keeps only the newest positions of a slot, in a ring. A snapshot is a
// copy of the part of them that a sequence needs to go on from some page's border: together with
// the pages before it, it lets another sequence that begins alike start there (prefix_cache.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "worker/batch.h"
#include "worker/model/config.h"
#include "worker/model/load_options.h"

namespace ultraspeed::worker {

// How cached keys and values are held. kFp8 (e4m3, unscaled) halves their memory and moves logits
// visibly (docs/PERFORMANCE.md); CUDA only.
enum class KvPrecision : uint8_t { kBf16, kFp8 };

// How the drafter's matrices are held. kFp8 (e4m3, 128 x 128 blocks) halves what drafting reads and
// never changes the text, which the target chooses. kAuto is kFp8 on a CPU with AMX, where a round
// waits for memory, else kBf16, which is all that the CUDA executor takes.
enum class DrafterPrecision : uint8_t { kAuto, kBf16, kFp8 };

struct ExecutorOptions {
  std::string model_folder = {};
  int max_sequences = 8;       // slots
  int max_batch_tokens = 512;  // rows of one round, all sequences together
  int64_t kv_tokens = 65536;   // capacity of the full layers, rounded up to pages
  int num_snapshots = 0;       // of beginnings that are kept to be shared
  int num_threads = 0;         // 0 = NumUsableCores()
  KvPrecision kv_precision = KvPrecision::kBf16;
  DrafterPrecision drafter_precision = DrafterPrecision::kAuto;
  bool resident = true;  // rounds of a few sequences on the resident kernel; CUDA only
  // The CUDA executor counts the distinct experts of each pass, which takes a copy from the device
  // and a walk over it: for benchmarks. The CPU executor always knows them.
  bool count_experts = false;
  // Tensor-parallel ranks that the model is sharded over (worker/model/sharding_plan.h): GPUs, or
  // on a CPU groups of threads.
  int num_ranks = 1;
  ExpertPrecision experts = ExpertPrecision::kAsStored;
  ReadOptions reads = {};          // of the model's files
  std::string weights_cache = {};  // folder; CUDA only; empty = none
  LoadProgress progress = {};      // may be null; of all ranks together
  LoadNotice notice = {};          // may be null

  // Of a load by one rank.
  LoadOptions load() const {
    return {.reads = reads, .weights_cache = weights_cache, .progress = progress, .notice = notice};
  }
};

class Executor {
 public:
  virtual ~Executor() = default;

  virtual const ModelConfig& config() const = 0;
  virtual int max_sequences() const = 0;
  virtual int max_batch_tokens() const = 0;
  virtual int page_tokens() const = 0;  // P
  virtual int num_pages() const = 0;
  virtual int vocabulary_used()
      const = 0;  // ids that may be sampled: rows past the tokenizer's last id are masked
  virtual std::string device() const = 0;  // "cpu avx512_bf16, 2 threads"

  // Blocks of rows, of a drafter's length each, that sequences which decode may divide in a round.
  virtual int decode_blocks() const { return 1; }
  // Drafts that a step may bring along.
  virtual int given_drafts_max() const { return config().draft_block() - 1; }
  // Whether SequenceStep::reach_min is heeded.
  virtual bool weighs_drafts() const { return false; }

  virtual int num_snapshots() const = 0;

  // Forgets what slot `slot` held; the next step on it starts at computed == 0.
  virtual void ResetSlot(int slot) = 0;
  // Copies to snapshot `snapshot` what a sequence that goes on from `position` needs of the rings
  // of `slot`. REQUIRES: position > 0, a multiple of P; position <= computed <= position + max(P,
  // max_batch_tokens) of the sequence that ran in the slot last.
  virtual void SaveSnapshot(int snapshot, int slot, int64_t position) = 0;
  // Instead of ResetSlot: the next step on the slot starts at computed == position. Its pages
  // before that are those of the sequence of which the snapshot was saved, at the same position.
  virtual void LoadSnapshot(int snapshot, int slot, int64_t position) = 0;

  // Runs one round. REQUIRES: the bounds above; total rows <= max_batch_tokens.
  virtual RoundResult Run(const Round& round) = 0;
};

absl::StatusOr<std::unique_ptr<Executor>> CreateCpuExecutor(const ExecutorOptions& options);

}  // namespace ultraspeed::worker
