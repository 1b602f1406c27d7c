#include "worker/suffix_index.h"

#include <algorithm>

#include "absl/hash/hash.h"

namespace ultraspeed::worker {
namespace {

constexpr int kLinksMax = 16;  // of a chain that are compared

uint64_t HashOfRun(absl::Span<const int32_t> text, int64_t end, int run) {
  return absl::HashOf(text.subspan(static_cast<size_t>(end - run), static_cast<size_t>(run)));
}

// Of the tokens before both ends. REQUIRES: end < the text's.
int CommonLength(absl::Span<const int32_t> text, int64_t end) {
  const auto newest = static_cast<int64_t>(text.size());
  const int64_t bound = std::min<int64_t>(end, SuffixIndex::kLengthMax);
  int64_t length = 0;
  while (length < bound && text[static_cast<size_t>(end - 1 - length)] ==
                               text[static_cast<size_t>(newest - 1 - length)]) {
    ++length;
  }
  return static_cast<int>(length);
}

}  // namespace

SuffixMatch SuffixIndex::Longest(absl::Span<const int32_t> text) {
  const bool has_long = Extend(text, long_runs_), has_short = Extend(text, short_runs_);
  if (!has_long || !has_short) return {};
  const SuffixMatch match = Search(text, long_runs_);
  return match.length > 0 ? match : Search(text, short_runs_);
}

bool SuffixIndex::Extend(absl::Span<const int32_t> text, Chains& chains) {
  const auto first = static_cast<int64_t>(chains.previous.size()),
             size = static_cast<int64_t>(text.size());
  const int64_t bound = std::min(size, first + kTakenAtOnce);
  if (first == 0) {  // growing a large table would hold up a round, too
    chains.newest.reserve(text.size());
    chains.previous.reserve(text.size());
  }
  for (int64_t end = first; end < bound; ++end) {
    chains.previous.push_back(kNone);
    if (end < chains.run) continue;
    const auto [newest, is_new] =
        chains.newest.try_emplace(HashOfRun(text, end, chains.run), kNone);
    chains.previous.back() = newest->second;
    newest->second = static_cast<int32_t>(end);
  }
  return bound == size;
}

SuffixMatch SuffixIndex::Search(absl::Span<const int32_t> text, const Chains& chains) {
  SuffixMatch longest;
  const auto size = static_cast<int64_t>(text.size());
  if (size <= chains.run) return longest;
  const auto newest = chains.newest.find(HashOfRun(text, size, chains.run));
  int32_t end = newest == chains.newest.end() ? kNone : newest->second;
  for (int links = 0; end != kNone && links < kLinksMax; ++links) {
    const int length = CommonLength(text, end);
    // Runs of one hash may differ.
    if (length >= chains.run && length > longest.length) longest = {.end = end, .length = length};
    end = chains.previous[static_cast<size_t>(end)];
  }
  return longest;
}

}  // namespace ultraspeed::worker
