// Sums and gathers over the GPUs of a node, through memory that each of them maps of the others.
//
// A rank writes its part into every rank's inbox, waits for what arrives in its own and adds it up
// or puts it in place: one kernel on each GPU, one trip over NVLink, no host. What travels are
// words of 32 bits that are their own flags: a word that holds a certain value, which is never
// sent, has not arrived. Three inboxes take turns; an operation empties the one of the operation
// before, which no rank can fill before it has seen this operation's data of ours. The turn is
// counted in device memory, so a captured call can be replayed. Callers: worker/cuda and the
// benchmark. As kernels/cuda/ops.h: every call only enqueues.
//
// Numerics: a sum's parts are rounded to bf16 on their way (minus zero becomes zero) and added in
// fp32 in rank order, ((r0 + r1) + r2) + ..., which is what the resident engine does: the same bits
// on every rank, in every run and in any company. A gather's parts travel as they are, minus zero
// as zero.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace ultraspeed::kernels::cuda {

constexpr int kPeersMax = 8;

// In pinned memory: whose data a rank waited for too long, and in which operation.
struct PeerWaitReport {
  uint32_t is_stuck;
  int32_t peer;
  uint32_t operation;
};

// In device memory, zeroed at first.
struct PeerTurn {
  uint32_t operation;    // the next one's number
  uint32_t num_vectors;  // that the last one left in each part of its inbox
  uint32_t num_blocks_done;
  uint32_t gave_up;  // a wait lasted too long: results are worthless, nobody waits any more
};

// One rank's end. All ranks call the same operations in the same order.
struct PeerInbox {
  int rank = 0, num_ranks = 1;
  uint32_t* push[kPeersMax] = {};  // where this rank's part lies in each rank's first inbox
  uint32_t* inbox = nullptr;       // [3, ranks, capacity]
  size_t capacity = 0;             // words of a part, a multiple of 4
  PeerTurn* turn = nullptr;
  PeerWaitReport* report = nullptr;
  uint64_t wait_ns_max = 0;
};
size_t PeerInboxBytes(int num_ranks, size_t capacity);
// Before any rank's first operation.
void EmptyPeerInbox(const PeerInbox& peers, cudaStream_t stream);

// data = sum over ranks. `data` is 16-byte aligned; more than 2 * capacity numbers go in pieces.
void SumOverPeers(const PeerInbox& peers, float* data /*[count]*/, size_t count,
                  cudaStream_t stream);

// out[row, r * columns + i] = rank r's part[row, i]. `part` is 16-byte aligned.
void GatherOverPeers(const PeerInbox& peers, const float* part /*[rows, columns]*/, int rows,
                     int columns, float* out /*[rows, ranks * columns]*/, cudaStream_t stream);

// The same results where the parts travel in another way: words of a part out of numbers, and what
// comes of all ranks' parts. All arrays are 16-byte aligned.
size_t SumWords(size_t count);  // of one part
void RoundPart(const float* data /*[count]*/, size_t count, uint32_t* words /*[SumWords]*/,
               cudaStream_t stream);
void AddParts(const uint32_t* words /*[ranks, SumWords]*/, int num_ranks, size_t count,
              float* sum /*[count]*/, cudaStream_t stream);
void PlaceParts(const float* parts /*[ranks, rows, columns]*/, int num_ranks, int rows, int columns,
                float* out /*[rows, ranks * columns]*/, cudaStream_t stream);

}  // namespace ultraspeed::kernels::cuda
