#include "router/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace ultraspeed::router {

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  for (std::string& stop : stops) {
    Automaton automaton{std::move(stop), {}, 0};
    automaton.failure.assign(automaton.stop.size(), 0);
    for (size_t i = 1, border = 0; i < automaton.stop.size(); ++i) {
      while (border > 0 && automaton.stop[i] != automaton.stop[border])
        border = automaton.failure[border - 1];
      if (automaton.stop[i] == automaton.stop[border]) ++border;
      automaton.failure[i] = static_cast<uint16_t>(border);
    }
    automata_.push_back(std::move(automaton));
  }
}

StopMatcher::Result StopMatcher::Append(absl::string_view chunk) {
  if (matched_) return {"", true, match_};
  Result result;
  result.text = std::exchange(held_, "");
  for (const char byte : chunk) {
    result.text.push_back(byte);
    for (Automaton& automaton : automata_) {
      size_t& matched = automaton.matched_bytes;
      while (matched > 0 && byte != automaton.stop[matched])
        matched = automaton.failure[matched - 1];
      if (byte == automaton.stop[matched]) ++matched;
      if (matched < automaton.stop.size()) continue;
      if (!matched_ || automaton.stop.size() > match_.size()) match_ = automaton.stop;
      matched_ = true;
    }
    if (matched_) {
      result.text.resize(result.text.size() - match_.size());
      result.matched = true;
      result.stop = match_;
      return result;
    }
  }
  size_t held_bytes = 0;
  for (const Automaton& automaton : automata_)
    held_bytes = std::max(held_bytes, automaton.matched_bytes);
  held_ = result.text.substr(result.text.size() - held_bytes);
  result.text.resize(result.text.size() - held_bytes);
  return result;
}

std::string StopMatcher::Finish() { return std::exchange(held_, ""); }

}  // namespace ultraspeed::router
