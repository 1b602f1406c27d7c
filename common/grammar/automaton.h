// Where a text stands in a grammar. A State is all that is left of the text that led to it: a small
// value, so a branch that was tried is thrown away by forgetting it.
//
// A place in a text is a set of stacks of frames: the node of the grammar that comes next, and the
// nodes behind the rules that were called. Frames hold sets of frames below them, so that what two
// readings of a text have in common is there once; equal sets have one number (StateTable). Where a
// byte leads from a set is computed once.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/grammar/grammar.h"
#include "common/limits.h"

namespace ultraspeed::grammar {

using StateId = uint32_t;                 // of one table
inline constexpr StateId kDeadState = 0;  // the empty set

struct Frame {
  NodeId node = kNoNode;
  uint32_t count = 0;            // of the node's rule
  StateId callers = kDeadState;  // the frames below; none below kEndNode and kCallerNode

  friend auto operator<=>(const Frame&, const Frame&) = default;
  template <typename H>
  friend H AbslHashValue(H hash, const Frame& frame) {
    return H::combine(std::move(hash), frame.node, frame.count, frame.callers);
  }
};

// The sets of frames that are known, by number. Thread contract: one thread at a time.
class StateTable {
 public:
  explicit StateTable(std::shared_ptr<const Grammar> grammar);
  StateTable(const StateTable&) = delete;
  StateTable& operator=(const StateTable&) = delete;

  StateId start() const { return start_; }
  // Behind one more byte; kDeadState if no text of the grammar goes on like this.
  StateId Next(StateId state, uint8_t byte) {
    const StateId* next = sets_[state].next.get();
    const StateId known = next == nullptr ? kUnknown : next[grammar_->byte_class(byte)];
    return known != kUnknown ? known : ComputeNext(state, byte);
  }
  // Where a rule's end leads to, from the frames below.
  StateId Return(StateId callers);
  // The set of `frames`, in any order.
  StateId Intern(std::vector<Frame> frames);
  // The same set as one of another table of the same grammar.
  StateId Import(const StateTable& other, StateId state);

  absl::Span<const Frame> frames(StateId state) const { return sets_[state].frames; }
  bool can_end(StateId state) const { return Has(state, kEndNode); }
  bool reached_caller(StateId state) const { return Has(state, kCallerNode); }
  // So many plain characters may come next, whatever they are.
  uint32_t num_free_characters(StateId state) const { return sets_[state].num_free_characters; }
  const Grammar& grammar() const { return *grammar_; }
  // Sets and frames in them: what takes the memory.
  size_t num_frames() const { return sets_.size() + num_frames_; }

 private:
  static constexpr StateId kUnknown = ~StateId{0};
  struct Set {
    std::vector<Frame> frames;  // ascending, no two of the same node, count and depth
    int depth = 0;              // of the stacks that have these frames on top
    uint32_t num_free_characters = 0;
    std::unique_ptr<StateId[]> next;  // by class of byte; null: none is known
    StateId returned = kUnknown;
  };
  struct Hash {
    using is_transparent = void;
    const StateTable* table;
    size_t operator()(absl::Span<const Frame> frames) const;
    size_t operator()(StateId id) const { return (*this)(table->frames(id)); }
  };
  struct Equal {
    using is_transparent = void;
    const StateTable* table;
    absl::Span<const Frame> Frames(absl::Span<const Frame> frames) const { return frames; }
    absl::Span<const Frame> Frames(StateId id) const { return table->frames(id); }
    template <typename A, typename B>
    bool operator()(const A& a, const B& b) const {
      return Frames(a) == Frames(b);
    }
  };

  // Of kEndNode and kCallerNode.
  bool Has(StateId state, NodeId node) const;
  int Depth(const Frame& frame) const { return sets_[frame.callers].depth + 1; }
  StateId ComputeNext(StateId state, uint8_t byte);
  // The set of all frames that read bytes and are reached from `frames` without reading any.
  StateId Close(std::vector<Frame> frames);
  struct Call {
    RuleId rule = kNoRule;
    int depth = 0;  // of the stacks below it
    StateId callers = kUnknown;
    Frame behind;  // if callers is kUnknown: the one frame that is the caller
  };
  // The first frames of called rules: one for all calls of a rule at the same depth, or those of
  // many alternatives would multiply with every level.
  std::vector<Frame> EnterRules(std::vector<Call> calls);
  StateId Union(StateId a, StateId b);
  StateId Import(const StateTable& other, StateId state,
                 absl::flat_hash_map<StateId, StateId>* known);
  // Whether the guard lets `count` pass, which is counted on.
  bool Pass(Guard guard, CountRange range, uint32_t* count) const;

  const std::shared_ptr<const Grammar> grammar_;
  std::vector<Set> sets_;
  size_t num_frames_ = 0;
  absl::flat_hash_set<StateId, Hash, Equal> ids_;
  absl::flat_hash_map<std::pair<StateId, StateId>, StateId> unions_;
  StateId start_ = kDeadState;
};

// Keeps what it stands on alive. Thread contract: a value; any thread.
class State {
 public:
  State() = default;  // dead
  bool is_dead() const { return id_ == kDeadState; }
  // The text may end here.
  bool can_end() const { return can_end_; }

 private:
  friend class Automaton;
  State(std::shared_ptr<const StateTable> table, StateId id)
      : table_(std::move(table)), id_(id), can_end_(table_->can_end(id)) {}

  std::shared_ptr<const StateTable> table_;
  StateId id_ = kDeadState;
  bool can_end_ = false;
};

// When it knows sets of more than `frames_max` frames it begins to learn anew, between two calls.
// States that were given out keep the old table until they are advanced or forgotten. Thread
// contract: one thread at a time.
class Automaton {
 public:
  explicit Automaton(std::shared_ptr<const Grammar> grammar,
                     int frames_max = limits::kGrammarFramesMax);

  State Start() const { return State(table_, table_->start()); }
  // Dead if no text of the grammar goes on like this.
  State Advance(const State& state, absl::string_view bytes);

  // A state's number in the table in use; both hold until the next call to Advance or Locate.
  StateId Locate(const State& state);
  StateTable& table() { return *table_; }
  // Changes with the table: the numbers of another generation mean other states.
  int64_t generation() const { return generation_; }

 private:
  const std::shared_ptr<const Grammar> grammar_;
  const size_t frames_max_;
  std::shared_ptr<StateTable> table_;
  int64_t generation_ = 0;
};

}  // namespace ultraspeed::grammar
