// Where the end of a text has stood in it before: the longest match of a suffix, as a compressor
// with a sliding dictionary finds it (LZ77), by hash chains.
//
// The ends of all runs of kShortRun and of kLongRun tokens are chained by what the runs are. The
// chain of the end's long run is searched first, its newest links only, then that of its short run.
// A long text is taken in a part at a time, so that no call holds up the others' rounds. Some 40
// bytes a token. Pure; the caller keeps the text. Thread: the caller's.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"

namespace ultraspeed::worker {

// The `length` tokens before `end` are also the text's last ones; length 0: there is none.
struct SuffixMatch {
  int64_t end = 0;
  int length = 0;
};

class SuffixIndex {
 public:
  static constexpr int kShortRun = 3, kLongRun = 8;
  static constexpr int kLengthMax = 64;      // longer matches are not told apart
  static constexpr int kTakenAtOnce = 4096;  // tokens; some 0.3 ms, the first ones up to 3

  // The longest match that was found, of equals the newest; none while more than kTakenAtOnce
  // tokens are new. REQUIRES: `text` begins with the text of the call before.
  SuffixMatch Longest(absl::Span<const int32_t> text);

 private:
  // Ends of equal runs, each with the one before it.
  struct Chains {
    int run;
    absl::flat_hash_map<uint64_t, int32_t> newest = {};  // by the run's hash
    std::vector<int32_t> previous = {};                  // [ends]; kNone: the first
  };
  static constexpr int32_t kNone = -1;

  // Takes in ends before the text's own; returns whether all of them are in.
  static bool Extend(absl::Span<const int32_t> text, Chains& chains);
  static SuffixMatch Search(absl::Span<const int32_t> text, const Chains& chains);

  Chains long_runs_{.run = kLongRun}, short_runs_{.run = kShortRun};
};

}  // namespace ultraspeed::worker
