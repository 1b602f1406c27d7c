#include "worker/output_constraint.h"

#include <utility>

namespace ultraspeed::worker {

OutputConstraint::OutputConstraint(const OutputGrammar& grammar)
    : grammar_(grammar),
      position_(Begin(grammar.calls              ? Place::kFree
                      : grammar.after_token >= 0 ? Place::kThought
                                                 : Place::kHeld)) {}

OutputConstraint::Position OutputConstraint::After(const Position& position, int32_t token) const {
  switch (position.place) {
    case Place::kThought:
      if (grammar_.calls)
        return token == grammar_.calls->thought_end ? Begin(Place::kFree) : position;
      return token == grammar_.after_token ? Begin(Place::kHeld) : position;
    case Place::kFree:
      if (token == grammar_.calls->begin) return Begin(Place::kHeld);
      return token == grammar_.calls->thought_begin ? Begin(Place::kThought) : position;
    case Place::kHeld:
      break;
  }
  const grammar::State& state = position.state;
  // Behind a whole call the grammar has nothing more.
  if (!grammar_.calls || !state.can_end())
    return {Place::kHeld, grammar_.constraint->Advance(state, token)};
  return token == grammar_.calls->end ? Begin(Place::kFree) : Position{Place::kHeld, {}};
}

std::shared_ptr<const grammar::TokenMask> OutputConstraint::MaskOf(const Position& position) const {
  if (position.place == Place::kFree) return nullptr;
  if (position.place == Place::kThought) return grammar_.before;
  const bool ends_call = grammar_.calls && position.state.can_end();
  return ends_call ? grammar_.calls->only_end : grammar_.constraint->AllowedTokens(position.state);
}

TokenConstraint::Masks OutputConstraint::AllowedTokens(absl::Span<const int32_t> drafts) const {
  Position position = position_;
  Masks masks = {MaskOf(position)};
  for (const int32_t draft : drafts) {
    if (masks.back() != nullptr && !masks.back()->Allows(draft)) break;
    position = After(position, draft);
    masks.push_back(MaskOf(position));
  }
  return masks;
}

}  // namespace ultraspeed::worker
