// Byte-pair merges of one piece of text. Owned and called by the tokenizer; a piece is what the
// split pattern cut out.
//
// A piece that is one token is answered from an immutable table; other short pieces from a bounded
// cache; the rest by merging: a scan while the piece is short, a heap over a linked list (n log n)
// when it is long.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

namespace ultraspeed::router {

// Thread contract: immutable apart from the locked cache; Encode may be called from any thread.
class BytePairEncoder {
 public:
  struct Merge {
    int32_t left;
    int32_t right;
    int32_t merged;
  };

  // byte_ids: the token of each single byte. merges: by rank, lowest first; the first of two with
  // equal sides holds. token_bytes: [V] for the table of one-token pieces. ignore_merges: a piece
  // that is in the vocabulary is one token even if its merges would not lead there.
  BytePairEncoder(const std::array<int32_t, 256>& byte_ids, const std::vector<Merge>& merges,
                  const absl::flat_hash_map<std::string, int32_t>& ids_by_bytes,
                  bool ignore_merges);

  // Appends the piece's tokens. REQUIRES: piece is not empty and under 2^31 bytes.
  void Encode(absl::string_view piece, std::vector<int32_t>* ids) const;

 private:
  struct RankedMerge {
    uint32_t rank;
    int32_t merged;
  };
  static constexpr int kCacheShards = 16;
  struct CacheShard {
    absl::Mutex mutex;
    absl::flat_hash_map<std::string, std::vector<int32_t>> entries ABSL_GUARDED_BY(mutex);
  };

  // Null if the two do not merge.
  const RankedMerge* Find(int32_t left, int32_t right) const;
  void MergeShort(absl::string_view piece, std::vector<int32_t>* ids) const;
  void MergeLong(absl::string_view piece, std::vector<int32_t>* ids) const;

  std::array<int32_t, 256> byte_ids_;
  absl::flat_hash_map<uint64_t, RankedMerge> merges_;
  absl::flat_hash_map<std::string, int32_t> whole_pieces_;
  mutable std::array<CacheShard, kCacheShards> cache_;
};

}  // namespace ultraspeed::router
