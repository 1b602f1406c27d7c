#include "common/grammar/automaton.h"

#include <algorithm>
#include <tuple>

#include "absl/hash/hash.h"

namespace ultraspeed::grammar {

StateTable::StateTable(std::shared_ptr<const Grammar> grammar)
    : grammar_(std::move(grammar)), ids_(0, Hash{this}, Equal{this}) {
  sets_.emplace_back().depth = -1;
  ids_.insert(kDeadState);
  const StateId end = Intern({{kEndNode, 0, kDeadState}});
  start_ = Close({{grammar_->rule(grammar_->root()).entry, 0, end}});
}

size_t StateTable::Hash::operator()(absl::Span<const Frame> frames) const {
  return absl::HashOf(frames);
}

bool StateTable::Has(StateId state, NodeId node) const {
  for (const Frame& frame : sets_[state].frames) {
    if (frame.node == node) return true;
    if (frame.node > kCallerNode) break;
  }
  return false;
}

bool StateTable::Pass(Guard guard, CountRange range, uint32_t* count) const {
  switch (guard) {
    case Guard::kNone:
      return true;
    case Guard::kEnough:
      return *count >= range.min;
    case Guard::kMore:
      return *count < range.max;
    case Guard::kCount:
      if (range.max == CountRange::kUnbounded) {
        *count = std::min(*count + 1, range.min);
        return true;
      }
      return (*count)++ < range.max;
  }
  return false;
}

StateId StateTable::ComputeNext(StateId state, uint8_t byte) {
  std::vector<Frame> behind;
  for (const Frame& frame : sets_[state].frames) {
    const CountRange range = frame.node <= kCallerNode
                                 ? CountRange{}
                                 : grammar_->rule(grammar_->node(frame.node).rule).count;
    for (const ByteEdge& edge : grammar_->byte_edges(frame.node)) {
      uint32_t count = frame.count;
      if (byte < edge.first || edge.last < byte || !Pass(edge.guard, range, &count)) continue;
      behind.push_back({edge.target, count, frame.callers});
    }
  }
  const StateId next = Close(std::move(behind));
  std::unique_ptr<StateId[]>& known = sets_[state].next;
  if (known == nullptr) {
    known = std::make_unique<StateId[]>(grammar_->num_byte_classes());
    std::fill_n(known.get(), grammar_->num_byte_classes(), kUnknown);
  }
  return known[grammar_->byte_class(byte)] = next;
}

StateId StateTable::Return(StateId callers) {
  if (sets_[callers].returned == kUnknown) {
    const StateId returned = Close(sets_[callers].frames);
    sets_[callers].returned = returned;
  }
  return sets_[callers].returned;
}

StateId StateTable::Close(std::vector<Frame> frames) {
  std::vector<Frame> reading;
  std::vector<Call> calls;
  absl::flat_hash_set<Frame> seen;
  absl::flat_hash_set<StateId> returned;
  while (!frames.empty() || !calls.empty()) {
    if (frames.empty()) frames = EnterRules(std::exchange(calls, {}));
    const Frame frame = frames.back();
    frames.pop_back();
    if (!seen.insert(frame).second) continue;
    const Grammar::Node& node = grammar_->node(frame.node);
    // A stack that cannot come to its end within the bound goes no further. Another one can: that
    // was asked of every frame on the way here.
    if (sets_[frame.callers].depth + node.frames_needed > limits::kGrammarStackDepthMax) continue;
    if (frame.node <= kCallerNode) {
      reading.push_back(frame);
      continue;
    }
    if (!grammar_->byte_edges(frame.node).empty()) reading.push_back(frame);
    if (node.is_final && returned.insert(frame.callers).second) {
      const absl::Span<const Frame> callers = this->frames(frame.callers);
      frames.insert(frames.end(), callers.begin(), callers.end());
    }
    const CountRange range = grammar_->rule(node.rule).count;
    for (const CallEdge& edge : grammar_->call_edges(frame.node)) {
      Frame behind = {edge.target, frame.count, frame.callers};
      if (!Pass(edge.guard, range, &behind.count)) continue;
      if (edge.rule == kNoRule) {
        frames.push_back(behind);
      } else if (edge.is_tail) {
        calls.push_back({edge.rule, sets_[frame.callers].depth, frame.callers, {}});
      } else {
        calls.push_back({edge.rule, Depth(behind), kUnknown, behind});
      }
    }
  }
  return Intern(std::move(reading));
}

std::vector<Frame> StateTable::EnterRules(std::vector<Call> calls) {
  const auto key = [](const Call& call) { return std::tuple(call.rule, call.depth, call.callers); };
  std::sort(calls.begin(), calls.end(),
            [&](const Call& a, const Call& b) { return key(a) < key(b); });
  std::vector<Frame> entries;
  for (size_t begin = 0, end; begin < calls.size(); begin = end) {
    const Call& first = calls[begin];
    std::vector<Frame> callers;
    for (end = begin; end < calls.size(); ++end) {
      const Call& call = calls[end];
      if (call.rule != first.rule || call.depth != first.depth) break;
      if (call.callers == kUnknown) {
        callers.push_back(call.behind);
      } else if (end == begin || call.callers != calls[end - 1].callers) {
        const absl::Span<const Frame> frames = this->frames(call.callers);
        callers.insert(callers.end(), frames.begin(), frames.end());
      }
    }
    const bool is_one = first.callers != kUnknown && first.callers == calls[end - 1].callers;
    entries.push_back(
        {grammar_->rule(first.rule).entry, 0, is_one ? first.callers : Intern(std::move(callers))});
  }
  return entries;
}

StateId StateTable::Intern(std::vector<Frame> frames) {
  const auto key = [this](const Frame& f) { return std::tuple(f.node, f.count, Depth(f)); };
  std::sort(frames.begin(), frames.end(), [&](const Frame& a, const Frame& b) {
    return std::pair(key(a), a.callers) < std::pair(key(b), b.callers);
  });
  std::vector<Frame> merged;
  for (const Frame& frame : frames) {
    if (merged.empty() || key(merged.back()) != key(frame)) {
      merged.push_back(frame);
    } else {
      merged.back().callers = Union(merged.back().callers, frame.callers);
    }
  }
  if (const auto found = ids_.find(absl::MakeConstSpan(merged)); found != ids_.end()) return *found;

  Set set;
  for (const Frame& frame : merged) {
    set.depth = Depth(frame);
    const Grammar::Node& node = grammar_->node(frame.node);
    uint32_t num_free = node.num_free_characters;
    if (node.is_free_text) {
      const uint32_t max = grammar_->rule(node.rule).count.max;
      num_free = max == CountRange::kUnbounded ? max : max - frame.count;
    }
    set.num_free_characters = std::max(set.num_free_characters, num_free);
  }
  num_frames_ += merged.size();
  set.frames = std::move(merged);
  const auto id = static_cast<StateId>(sets_.size());
  sets_.push_back(std::move(set));
  ids_.insert(id);
  return id;
}

StateId StateTable::Union(StateId a, StateId b) {
  if (a == b) return a;
  const auto key = std::minmax(a, b);
  if (const auto found = unions_.find(key); found != unions_.end()) return found->second;
  std::vector<Frame> frames = sets_[a].frames;
  frames.insert(frames.end(), sets_[b].frames.begin(), sets_[b].frames.end());
  const StateId id = Intern(std::move(frames));
  unions_[key] = id;
  return id;
}

StateId StateTable::Import(const StateTable& other, StateId state) {
  absl::flat_hash_map<StateId, StateId> known = {{kDeadState, kDeadState}};
  return Import(other, state, &known);
}

StateId StateTable::Import(const StateTable& other, StateId state,
                           absl::flat_hash_map<StateId, StateId>* known) {
  if (const auto found = known->find(state); found != known->end()) return found->second;
  std::vector<Frame> frames(other.frames(state).begin(), other.frames(state).end());
  for (Frame& frame : frames) frame.callers = Import(other, frame.callers, known);
  return (*known)[state] = Intern(std::move(frames));
}

Automaton::Automaton(std::shared_ptr<const Grammar> grammar, int frames_max)
    : grammar_(std::move(grammar)),
      frames_max_(static_cast<size_t>(frames_max)),
      table_(std::make_shared<StateTable>(grammar_)) {}

StateId Automaton::Locate(const State& state) {
  if (state.is_dead()) return kDeadState;
  if (table_->num_frames() > frames_max_) {
    table_ = std::make_shared<StateTable>(grammar_);
    ++generation_;
  }
  return state.table_ == table_ ? state.id_ : table_->Import(*state.table_, state.id_);
}

State Automaton::Advance(const State& state, absl::string_view bytes) {
  StateId id = Locate(state);
  for (const char c : bytes) {
    id = table_->Next(id, static_cast<uint8_t>(c));
    if (id == kDeadState) return State();
  }
  return State(table_, id);
}

}  // namespace ultraspeed::grammar
