// The text of a chat answer as what the model thought and what it says: a leading
// `<think>..</think>` is reasoning, all else content. Pure; one per answer, fed chunk by chunk.
//
// Surprising: nothing is trimmed, so that reasoning and content that a client sends back render to
// the tokens that were generated. At most a marker's bytes less one are held back between chunks.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace ultraspeed::router {

// Thread contract: one thread at a time.
class ReasoningSplitter {
 public:
  struct Parts {
    std::string reasoning;
    std::string content;
  };

  // `is_last`: with what was held back; nothing may come after it.
  Parts Take(absl::string_view text, bool is_last);
  Parts Append(absl::string_view text);
  // What was held back. Call once, at the end.
  Parts Finish();

 private:
  enum class State { kStart, kReasoning, kContent };

  State state_ = State::kStart;
  std::string held_;  // may be the beginning of the marker that the state waits for
};

}  // namespace ultraspeed::router
