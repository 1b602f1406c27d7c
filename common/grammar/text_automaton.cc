#include "common/grammar/text_automaton.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace ultraspeed::grammar {
namespace {

using Kind = Pattern::Kind;

// Nondeterministic, by Thompson's construction. `found` is where the pattern has been read.
class Places {
 public:
  enum class Condition : uint8_t { kNone, kAtBegin, kAtEnd };
  struct Empty {
    size_t target;
    Condition condition;
  };
  struct Place {
    std::vector<Empty> empties;
    CodePoints characters;  // lead to `target`
    size_t target = 0;
  };

  explicit Places(const Pattern& pattern) {
    const CodePoints any = CodePoints().Complement();
    const size_t begin = Add();
    AddCharacters(begin, any, begin);  // the pattern may begin anywhere
    const size_t search = Add();
    AddEmpty(begin, search);
    found_ = Add();
    AddEmpty(Build(pattern, search), found_);
    AddCharacters(found_, any, found_);
  }
  const Place& operator[](size_t i) const { return places_[i]; }
  size_t size() const { return places_.size(); }
  size_t found() const { return found_; }

 private:
  size_t Add() {
    places_.emplace_back();
    return places_.size() - 1;
  }
  void AddEmpty(size_t from, size_t to, Condition condition = Condition::kNone) {
    places_[from].empties.push_back({to, condition});
  }
  void AddCharacters(size_t from, const CodePoints& characters, size_t to) {
    places_[from].characters = characters;
    places_[from].target = to;
  }

  // Behind `from`, which reads nothing yet; returns where the pattern has been read.
  size_t Build(const Pattern& pattern, size_t from) {
    const size_t end = Add();
    switch (pattern.kind) {
      case Kind::kCharacters: {
        const size_t place = Add();
        AddEmpty(from, place);
        AddCharacters(place, pattern.characters, end);
        break;
      }
      case Kind::kSequence: {
        for (const Pattern& part : pattern.parts) from = Build(part, from);
        AddEmpty(from, end);
        break;
      }
      case Kind::kAlternatives:
        for (const Pattern& part : pattern.parts) AddEmpty(Build(part, from), end);
        break;
      case Kind::kRepeat:
        AddEmpty(BuildRepeat(pattern, from), end);
        break;
      case Kind::kBegin:
        AddEmpty(from, end, Condition::kAtBegin);
        break;
      case Kind::kEnd:
        AddEmpty(from, end, Condition::kAtEnd);
        break;
    }
    return end;
  }

  size_t BuildRepeat(const Pattern& repeat, size_t from) {
    const Pattern& part = repeat.parts[0];
    for (uint32_t i = 0; i < repeat.min; ++i) from = Build(part, from);
    const size_t end = Add();
    if (repeat.max == Pattern::kUnbounded) {
      const size_t loop = Add();
      AddEmpty(from, loop);
      AddEmpty(Build(part, loop), loop);
      from = loop;
    }
    for (uint32_t i = repeat.min; repeat.max != Pattern::kUnbounded && i < repeat.max; ++i) {
      AddEmpty(from, end);
      from = Build(part, from);
    }
    AddEmpty(from, end);
    return end;
  }

  std::vector<Place> places_;
  size_t found_ = 0;
};

// Of a pattern, its repetitions written out; saturates.
uint64_t NumParts(const Pattern& pattern) {
  constexpr uint64_t kMany = 1u << 30;
  uint64_t count = 0;
  for (const Pattern& part : pattern.parts) count += NumParts(part);
  if (pattern.kind == Kind::kRepeat)
    count *= pattern.max == Pattern::kUnbounded ? pattern.min + 1 : pattern.max;
  return std::min(count + 1, kMany);
}

// Subset construction. The characters are cut at all borders of the pattern's sets: pieces.
class Determinizer {
 public:
  Determinizer(const Pattern& pattern, CountRange length, int* steps_left)
      : places_(pattern),
        length_(length),
        counts_up_to_(length.max == CountRange::kUnbounded ? length.min : length.max),
        steps_left_(steps_left),
        seen_(places_.size()) {
    std::set<uint32_t> borders = {0};
    for (size_t i = 0; i < places_.size(); ++i) {
      for (const CodePointRange& range : places_[i].characters.ranges()) {
        borders.insert(range.first);
        if (range.last < kCodePointMax) borders.insert(range.last + 1);
      }
    }
    borders_.assign(borders.begin(), borders.end());
  }

  absl::StatusOr<TextAutomaton> Run() {
    StateOf(Closure({0}, /*at_begin=*/true), 0);
    for (size_t i = 0; i < sets_.size(); ++i) {
      RETURN_IF_ERROR(AddEdges(i));
    }
    RemoveDeadEnds();
    return std::move(automaton_);
  }

 private:
  using Set = std::vector<size_t>;  // of places, ascending
  struct Key {
    Set places;
    uint32_t count;  // characters read, as far as that matters
    auto operator<=>(const Key&) const = default;
  };

  // Where one is without reading anything; of those, the places from which something follows.
  Set Closure(const Set& from, bool at_begin, bool at_end = false) {
    std::fill(seen_.begin(), seen_.end(), false);
    Set open = from, closure;
    for (const size_t place : from) seen_[place] = true;
    while (!open.empty()) {
      const size_t place = open.back();
      open.pop_back();
      *steps_left_ -= 1;
      bool matters = place == places_.found() || !places_[place].characters.ranges().empty();
      for (const Places::Empty& empty : places_[place].empties) {
        const bool holds = empty.condition == Places::Condition::kNone ||
                           (empty.condition == Places::Condition::kAtBegin ? at_begin : at_end);
        matters |= empty.condition == Places::Condition::kAtEnd;
        if (!holds || seen_[empty.target]) continue;
        seen_[empty.target] = true;
        open.push_back(empty.target);
      }
      if (matters) closure.push_back(place);
    }
    // Once the pattern is found, nothing changes that.
    if (seen_[places_.found()]) return {places_.found()};
    std::sort(closure.begin(), closure.end());
    return closure;
  }

  size_t StateOf(Set places, uint32_t count) {
    const auto [found, is_new] = state_of_.try_emplace({std::move(places), count}, sets_.size());
    if (is_new) {
      const Key& key = found->first;
      sets_.push_back(&key);
      const Set at_end = Closure(key.places, key.count == 0 && automaton_.states.empty(), true);
      const bool is_found = std::binary_search(at_end.begin(), at_end.end(), places_.found());
      automaton_.states.push_back({is_found && count >= length_.min, {}});
    }
    return found->second;
  }

  absl::Status AddEdges(size_t state) {
    const Key& key = *sets_[state];
    if (key.count == length_.max) return absl::OkStatus();
    if (*steps_left_ < 0) return absl::InvalidArgumentError("takes too many states to follow");
    std::map<size_t, Set> after;  // by piece
    for (const size_t place : key.places) {
      for (const CodePointRange& range : places_[place].characters.ranges()) {
        for (size_t piece = PieceOf(range.first);
             piece < borders_.size() && borders_[piece] <= range.last; ++piece) {
          after[piece].push_back(places_[place].target);
          *steps_left_ -= 1;
        }
      }
    }
    std::map<Set, CodePoints> characters_of;
    for (auto& [piece, places] : after) {
      const uint32_t last = piece + 1 < borders_.size() ? borders_[piece + 1] - 1 : kCodePointMax;
      std::sort(places.begin(), places.end());
      characters_of[places].Add({borders_[piece], last});
    }
    std::map<size_t, CodePoints> edges;
    for (const auto& [places, characters] : characters_of) {
      const uint32_t count = std::min(key.count + 1, counts_up_to_);
      edges[StateOf(Closure(places, /*at_begin=*/false), count)].Add(characters);
    }
    for (auto& [target, characters] : edges)
      automaton_.states[state].edges.push_back({std::move(characters), target});
    return absl::OkStatus();
  }

  // Edges from which no text ends.
  void RemoveDeadEnds() {
    std::vector<TextAutomaton::State>& states = automaton_.states;
    std::vector<std::vector<size_t>> sources(states.size());
    std::vector<size_t> open;
    std::vector<bool> ends(states.size());
    for (size_t i = 0; i < states.size(); ++i) {
      for (const TextAutomaton::Edge& edge : states[i].edges) sources[edge.target].push_back(i);
      ends[i] = states[i].is_final;
      if (ends[i]) open.push_back(i);
    }
    while (!open.empty()) {
      const size_t state = open.back();
      open.pop_back();
      for (const size_t source : sources[state]) {
        if (ends[source]) continue;
        ends[source] = true;
        open.push_back(source);
      }
    }
    for (TextAutomaton::State& state : states)
      std::erase_if(state.edges, [&](const auto& edge) { return !ends[edge.target]; });
  }

  size_t PieceOf(uint32_t border) const {
    return static_cast<size_t>(std::lower_bound(borders_.begin(), borders_.end(), border) -
                               borders_.begin());
  }

  const Places places_;
  const CountRange length_;
  const uint32_t counts_up_to_;
  int* const steps_left_;
  std::vector<uint32_t> borders_;  // where pieces begin
  std::vector<bool> seen_;
  std::map<Key, size_t> state_of_;
  std::vector<const Key*> sets_;  // by state
  TextAutomaton automaton_;
};

}  // namespace

absl::StatusOr<TextAutomaton> FindPattern(const Pattern& pattern, CountRange num_characters,
                                          int* steps_left) {
  if (NumParts(pattern) > limits::kPatternPartsMax) {
    return absl::InvalidArgumentError(absl::StrCat("has more than ", limits::kPatternPartsMax,
                                                   " parts, its repetitions written out"));
  }
  return Determinizer(pattern, num_characters, steps_left).Run();
}

}  // namespace ultraspeed::grammar
