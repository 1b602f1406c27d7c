// What a request's output is held to: a grammar, once the thoughts are over. The part of a sequence
// that knows where in the grammar its committed tokens are.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/types/span.h"
#include "common/grammar/constraint.h"
#include "worker/batch.h"

namespace ultraspeed::worker {

// Of a request; all requests with the same grammar share the constraint.
struct OutputGrammar {
  std::shared_ptr<grammar::Constraint> constraint;  // null: any output
  // The grammar holds from the first token after this one on; -1: from the output's first.
  int32_t after_token = -1;
  // What may come before that: no end tokens. Not null if after_token is not -1.
  std::shared_ptr<const grammar::TokenMask> before;
};

// Thread: the engine's; AllowedTokens from any, between two calls of Commit.
class OutputConstraint final : public TokenConstraint {
 public:
  // REQUIRES: a constraint.
  explicit OutputConstraint(const OutputGrammar& grammar);

  void Commit(int32_t token) { position_ = After(position_, token); }
  // Whether a token was committed that is not allowed: nothing is then.
  bool is_dead() const { return position_.state.is_dead(); }

  Masks AllowedTokens(absl::Span<const int32_t> drafts) const override;

 private:
  struct Position {
    bool holds;            // the grammar does
    grammar::State state;  // its first while it does not
  };
  Position After(const Position& position, int32_t token) const;

  const OutputGrammar grammar_;
  Position position_;
};

}  // namespace ultraspeed::worker
