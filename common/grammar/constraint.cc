#include "common/grammar/constraint.h"

#include <utility>

#include "common/check.h"

namespace ultraspeed::grammar {

Constraint::Constraint(std::shared_ptr<const Grammar> grammar,
                       std::shared_ptr<const Vocabulary> vocabulary, int frames_max)
    : vocabulary_(std::move(vocabulary)),
      no_tokens_(std::make_shared<TokenMask>(vocabulary_->num_tokens())),
      automaton_(std::move(grammar), frames_max),
      builder_(vocabulary_) {}

State Constraint::Start() const {
  absl::MutexLock lock(&mutex_);
  return automaton_.Start();
}

State Constraint::Advance(const State& state, int32_t token) {
  CHECK_THAT(token, >=, 0);
  CHECK_THAT(token, <, vocabulary_->num_tokens());
  if (vocabulary_->is_end(token)) return state.can_end() ? state : State();
  const absl::string_view bytes = vocabulary_->bytes(token);
  if (bytes.empty()) return State();
  absl::MutexLock lock(&mutex_);
  return automaton_.Advance(state, bytes);
}

std::shared_ptr<const TokenMask> Constraint::AllowedTokens(const State& state) {
  if (state.is_dead()) return no_tokens_;
  absl::MutexLock lock(&mutex_);
  const StateId id = automaton_.Locate(state);
  if (masks_generation_ != automaton_.generation()) masks_.clear();
  masks_generation_ = automaton_.generation();
  if (const auto found = masks_.find(id); found != masks_.end()) return found->second;
  if (masks_.size() >= limits::kTokenMasksMax) masks_.clear();
  auto mask = std::make_shared<const TokenMask>(builder_.Build(&automaton_.table(), id));
  masks_[id] = mask;
  return mask;
}

}  // namespace ultraspeed::grammar
