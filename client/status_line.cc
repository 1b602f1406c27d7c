#include "client/status_line.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>

#include "absl/time/clock.h"

namespace ultraspeed::client {

StatusLine::StatusLine() {
  if (!isatty(STDERR_FILENO)) return;
  mode_ = Mode::kOverwrite;
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row < 4 || size.ws_col < 20) return;
  num_rows_ = size.ws_row;
  num_columns_ = size.ws_col;
  if (!isatty(STDOUT_FILENO)) return;
  mode_ = Mode::kBelowScrollRegion;
  // One free row at the bottom, then a scroll region above it; setting the region moves the cursor,
  // so save and restore it.
  std::fprintf(stderr, "\n\033[A\0337\033[1;%dr\0338", num_rows_ - 1);
  std::fflush(stderr);
}

StatusLine::~StatusLine() {
  if (mode_ == Mode::kOverwrite) std::fprintf(stderr, "\r\033[K");
  if (mode_ == Mode::kBelowScrollRegion) {
    std::fprintf(stderr, "\0337\033[r\033[%d;1H\033[K\0338", num_rows_);
  }
  if (mode_ != Mode::kOff) std::fflush(stderr);
}

void StatusLine::Update(const std::string& text) {
  const absl::Time now = absl::Now();
  if (mode_ == Mode::kOff || now - shown_ < absl::Milliseconds(100)) return;
  shown_ = now;
  const std::string cut = text.substr(0, static_cast<size_t>(num_columns_ - 1));
  if (mode_ == Mode::kOverwrite) {
    std::fprintf(stderr, "\r\033[K%s", cut.c_str());
  } else {
    std::fflush(stdout);
    std::fprintf(stderr, "\0337\033[%d;1H\033[K\033[7m%s\033[0m\0338", num_rows_, cut.c_str());
  }
  std::fflush(stderr);
}

}  // namespace ultraspeed::client
