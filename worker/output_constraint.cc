#include "worker/output_constraint.h"

namespace ultraspeed::worker {

OutputConstraint::OutputConstraint(const OutputGrammar& grammar)
    : grammar_(grammar),
      position_{.holds = grammar.after_token < 0, .state = grammar.constraint->Start()} {}

OutputConstraint::Position OutputConstraint::After(const Position& position, int32_t token) const {
  if (!position.holds) return {.holds = token == grammar_.after_token, .state = position.state};
  return {.holds = true, .state = grammar_.constraint->Advance(position.state, token)};
}

TokenConstraint::Masks OutputConstraint::AllowedTokens(absl::Span<const int32_t> drafts) const {
  Masks masks;
  Position position = position_;
  size_t num_followed = 0;
  for (; !position.holds; ++num_followed) {
    masks.push_back(grammar_.before);
    if (num_followed == drafts.size() || !grammar_.before->Allows(drafts[num_followed]))
      return masks;
    position = After(position, drafts[num_followed]);
  }
  grammar::Constraint::Draft draft =
      grammar_.constraint->FollowDraft(position.state, drafts.subspan(num_followed));
  for (grammar::Constraint::Draft::Row& row : draft.rows) masks.push_back(std::move(row.mask));
  return masks;
}

}  // namespace ultraspeed::worker
