// What a request's output is held to: a grammar, of all of it once the thoughts are over, or of
// every call of a tool in it. The part of a sequence that knows where its committed tokens are.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/types/span.h"
#include "common/grammar/constraint.h"
#include "worker/batch.h"

namespace ultraspeed::worker {

// Tokens around what is held; anything goes elsewhere.
struct CallMarks {
  int32_t begin = -1;
  int32_t end = -1;
  // Between these no call begins; -1: the model has none.
  int32_t thought_begin = -1;
  int32_t thought_end = -1;
  std::shared_ptr<const grammar::TokenMask> only_end = nullptr;  // `end` alone
};

// Of a request; all requests with the same grammar share the constraint.
struct OutputGrammar {
  std::shared_ptr<grammar::Constraint> constraint;  // null: any output
  // The grammar holds from the first token after this one on; -1: from the output's first.
  int32_t after_token = -1;
  // What may come before that: no end tokens. Not null if after_token is not -1.
  std::shared_ptr<const grammar::TokenMask> before;
  // Instead: it holds from each `begin` to the next `end`.
  std::optional<CallMarks> calls = {};
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
  enum class Place { kThought, kFree, kHeld };
  struct Position {
    Place place;
    grammar::State state;  // of the grammar; its first unless that holds
  };
  Position Begin(Place place) const { return {place, grammar_.constraint->Start()}; }
  Position After(const Position& position, int32_t token) const;
  std::shared_ptr<const grammar::TokenMask> MaskOf(const Position& position) const;

  const OutputGrammar grammar_;
  Position position_;
};

}  // namespace ultraspeed::worker
