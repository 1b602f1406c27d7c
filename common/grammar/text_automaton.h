// The texts that a pattern is found in, as a deterministic automaton over characters: following one
// costs the same whatever the pattern, which a nondeterministic one, followed by masks of tokens,
// does not promise.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "common/grammar/code_points.h"
#include "common/grammar/grammar.h"
#include "common/grammar/pattern.h"

namespace ultraspeed::grammar {

struct TextAutomaton {
  struct Edge {
    CodePoints characters;  // no two edges of a state share any
    size_t target = 0;
  };
  struct State {
    bool is_final = false;  // the text may end
    std::vector<Edge> edges;
  };
  std::vector<State> states;  // the first: nothing has been read; every edge leads to some end
};

// Texts of so many characters. Takes what it costs from `steps_left`; INVALID_ARGUMENT if that is
// not enough, or if the pattern has more than limits::kPatternPartsMax parts when its repetitions
// are written out.
absl::StatusOr<TextAutomaton> FindPattern(const Pattern& pattern, CountRange num_characters,
                                          int* steps_left);

}  // namespace ultraspeed::grammar
