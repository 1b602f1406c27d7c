// The live tokens/s line on standard error. If standard output is the same terminal, the line lives
// below a scroll region, so the streamed text and the line do not disturb each other. Does nothing
// if standard error is no terminal. Thread contract: one thread. Destruction restores the terminal.
#pragma once

#include <string>

#include "absl/time/time.h"

namespace ultraspeed::client {

class StatusLine {
 public:
  StatusLine();
  ~StatusLine();
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  // Shows `text`, at most ten times a second.
  void Update(const std::string& text);

 private:
  enum class Mode { kOff, kOverwrite, kBelowScrollRegion };

  Mode mode_ = Mode::kOff;
  int num_rows_ = 0;
  int num_columns_ = 80;
  absl::Time shown_ = absl::InfinitePast();
};

}  // namespace ultraspeed::client
