// Finds stop strings in streamed text across chunk borders.
//
// One per request, fed with the detokenizer's text. Text that may be the beginning of a stop string
// is held back until that is decided. The match that ends first wins, the longest of several that
// end together; it does not depend on chunk borders. Each stop string is followed by its own
// Knuth-Morris-Pratt automaton: a byte costs at most kStopStrings steps amortised.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace ultraspeed::router {

// Thread contract: one thread at a time.
class StopMatcher {
 public:
  struct Result {
    std::string text;  // safe to send: no part of a stop string
    bool matched = false;
    std::string stop;  // the stop string that ended the text, when matched
  };

  // REQUIRES: no stop string is empty (validation.h refuses those). No stop strings: every chunk
  // passes through.
  explicit StopMatcher(std::vector<std::string> stops);

  // After a match every further chunk is dropped and the result stays empty with matched set.
  Result Append(absl::string_view chunk);
  // What is still held back, at the end of a text that did not match. Empty after a match.
  std::string Finish();

 private:
  struct Automaton {
    std::string stop;
    std::vector<uint16_t> failure;  // [stop bytes] longest border of stop[0..i]
    size_t matched_bytes = 0;
  };

  std::vector<Automaton> automata_;
  std::string held_;  // the longest suffix so far that begins a stop string
  bool matched_ = false;
  std::string match_;
};

}  // namespace ultraspeed::router
