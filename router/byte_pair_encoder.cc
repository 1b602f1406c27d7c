#include "router/byte_pair_encoder.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <queue>

#include "absl/hash/hash.h"

namespace ultraspeed::router {
namespace {

constexpr size_t kShortPieceBytes = 64;  // scanned quadratically and cached
constexpr size_t kCacheEntriesPerShard = 4096;
constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
constexpr int32_t kNone = -1;

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

BytePairEncoder::BytePairEncoder(const std::array<int32_t, 256>& byte_ids,
                                 const std::vector<Merge>& merges,
                                 const absl::flat_hash_map<std::string, int32_t>& ids_by_bytes,
                                 bool ignore_merges)
    : byte_ids_(byte_ids) {
  merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    merges_.try_emplace(PairKey(merges[rank].left, merges[rank].right),
                        RankedMerge{static_cast<uint32_t>(rank), merges[rank].merged});
  }
  whole_pieces_.reserve(ids_by_bytes.size());
  std::vector<int32_t> ids;
  for (const auto& [bytes, id] : ids_by_bytes) {
    if (bytes.empty()) continue;
    ids.clear();
    if (!ignore_merges) {
      bytes.size() <= kShortPieceBytes ? MergeShort(bytes, &ids) : MergeLong(bytes, &ids);
    }
    if (ignore_merges || (ids.size() == 1 && ids[0] == id)) whole_pieces_.emplace(bytes, id);
  }
}

void BytePairEncoder::Encode(absl::string_view piece, std::vector<int32_t>* ids) const {
  if (const auto whole = whole_pieces_.find(piece); whole != whole_pieces_.end()) {
    ids->push_back(whole->second);
    return;
  }
  if (piece.size() > kShortPieceBytes) return MergeLong(piece, ids);
  CacheShard& shard = cache_[absl::HashOf(piece) % kCacheShards];
  {
    absl::MutexLock lock(&shard.mutex);
    if (const auto hit = shard.entries.find(piece); hit != shard.entries.end()) {
      ids->insert(ids->end(), hit->second.begin(), hit->second.end());
      return;
    }
  }
  const size_t before = ids->size();
  MergeShort(piece, ids);
  absl::MutexLock lock(&shard.mutex);
  if (shard.entries.size() >= kCacheEntriesPerShard) shard.entries.clear();
  shard.entries.try_emplace(piece, ids->begin() + static_cast<std::ptrdiff_t>(before), ids->end());
}

const BytePairEncoder::RankedMerge* BytePairEncoder::Find(int32_t left, int32_t right) const {
  const auto it = merges_.find(PairKey(left, right));
  return it == merges_.end() ? nullptr : &it->second;
}

void BytePairEncoder::MergeShort(absl::string_view piece, std::vector<int32_t>* ids) const {
  int32_t symbols[kShortPieceBytes];
  RankedMerge pairs[kShortPieceBytes];  // pairs[i]: symbols[i] with symbols[i + 1]
  size_t num_symbols = piece.size();
  const auto pair_at = [&](size_t i) {
    const RankedMerge* merge = i + 1 < num_symbols ? Find(symbols[i], symbols[i + 1]) : nullptr;
    return merge == nullptr ? RankedMerge{kNoRank, kNone} : *merge;
  };
  for (size_t i = 0; i < num_symbols; ++i) symbols[i] = byte_ids_[static_cast<uint8_t>(piece[i])];
  for (size_t i = 0; i < num_symbols; ++i) pairs[i] = pair_at(i);
  for (;;) {
    const size_t best =
        static_cast<size_t>(std::min_element(pairs, pairs + num_symbols,
                                             [](const RankedMerge& a, const RankedMerge& b) {
                                               return a.rank < b.rank;
                                             }) -
                            pairs);
    if (pairs[best].rank == kNoRank) break;
    symbols[best] = pairs[best].merged;
    std::copy(symbols + best + 2, symbols + num_symbols, symbols + best + 1);
    std::copy(pairs + best + 2, pairs + num_symbols, pairs + best + 1);
    --num_symbols;
    pairs[best] = pair_at(best);
    if (best > 0) pairs[best - 1] = pair_at(best - 1);
  }
  ids->insert(ids->end(), symbols, symbols + num_symbols);
}

void BytePairEncoder::MergeLong(absl::string_view piece, std::vector<int32_t>* ids) const {
  struct Symbol {
    int32_t id;
    int32_t previous;  // index or kNone
    int32_t next;
    uint32_t rank;  // of the pair that begins here; kNoRank if none or if the symbol is gone
  };
  const auto num_bytes = static_cast<int32_t>(piece.size());
  std::vector<Symbol> symbols(piece.size());
  for (int32_t i = 0; i < num_bytes; ++i) {
    symbols[i] = {byte_ids_[static_cast<uint8_t>(piece[i])], i - 1,
                  i + 1 < num_bytes ? i + 1 : kNone, kNoRank};
  }
  // An entry is rank << 32 | index: lowest rank first, leftmost of equals. It is stale if the rank
  // there is another one by now.
  std::vector<uint64_t> entries;
  entries.reserve(piece.size());
  const auto rank_pair = [&](int32_t i) {
    Symbol& symbol = symbols[i];
    const RankedMerge* merge =
        symbol.next == kNone ? nullptr : Find(symbol.id, symbols[symbol.next].id);
    symbol.rank = merge == nullptr ? kNoRank : merge->rank;
    return symbol.rank != kNoRank;
  };
  const auto entry_of = [&](int32_t i) {
    return static_cast<uint64_t>(symbols[i].rank) << 32 | static_cast<uint32_t>(i);
  };
  for (int32_t i = 0; i < num_bytes; ++i) {
    if (rank_pair(i)) entries.push_back(entry_of(i));
  }
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> queue(std::greater<>(),
                                                                             std::move(entries));
  while (!queue.empty()) {
    const uint64_t entry = queue.top();
    queue.pop();
    const auto i = static_cast<int32_t>(entry & 0xFFFFFFFFu);
    Symbol& symbol = symbols[i];
    if (symbol.rank != entry >> 32) continue;
    Symbol& gone = symbols[symbol.next];
    symbol.id = Find(symbol.id, gone.id)->merged;
    symbol.next = gone.next;
    gone.rank = kNoRank;
    if (symbol.next != kNone) symbols[symbol.next].previous = i;
    if (rank_pair(i)) queue.push(entry_of(i));
    if (symbol.previous != kNone && rank_pair(symbol.previous))
      queue.push(entry_of(symbol.previous));
  }
  for (int32_t i = 0; i != kNone; i = symbols[i].next) ids->push_back(symbols[i].id);
}

}  // namespace ultraspeed::router
