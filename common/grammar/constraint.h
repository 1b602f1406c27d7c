// A grammar over a vocabulary: which tokens may come next, and what a token leads to. One for all
// requests with the same grammar; each request keeps its State.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "common/grammar/automaton.h"
#include "common/grammar/grammar.h"
#include "common/grammar/mask_builder.h"
#include "common/grammar/token_mask.h"
#include "common/grammar/vocabulary.h"
#include "common/limits.h"

namespace ultraspeed::grammar {

// States are those of the constraint that gave them. Thread contract: any number of threads; calls
// take turns.
class Constraint {
 public:
  Constraint(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const Vocabulary> vocabulary,
             int frames_max = limits::kGrammarFramesMax);

  State Start() const;
  // Dead if the token is not allowed. An end token leaves a state that can end as it is.
  // REQUIRES: 0 <= token < V.
  State Advance(const State& state, int32_t token);
  // A mask that is known costs a look-up. Nothing is allowed in a dead state; in any other one
  // something is, if every byte is a token.
  std::shared_ptr<const TokenMask> AllowedTokens(const State& state);

 private:
  const std::shared_ptr<const Vocabulary> vocabulary_;
  const std::shared_ptr<const TokenMask> no_tokens_;
  mutable absl::Mutex mutex_;
  Automaton automaton_ ABSL_GUARDED_BY(mutex_);
  MaskBuilder builder_ ABSL_GUARDED_BY(mutex_);
  // At most limits::kTokenMasksMax, by states of one generation.
  absl::flat_hash_map<StateId, std::shared_ptr<const TokenMask>> masks_ ABSL_GUARDED_BY(mutex_);
  int64_t masks_generation_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace ultraspeed::grammar
