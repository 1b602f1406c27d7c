// How far long reading has come, for people: a bar on a terminal, else a log line every few
// seconds, with bytes, rate and the time that is left at that rate.
//
// Caller: main.cc, as the progress of a load or of a manifest check. Thread: one call at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/time/time.h"
#include "common/clock.h"

namespace ultraspeed::worker {

struct ProgressState {
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
  double seconds = 0;  // since the start

  bool done() const { return bytes_done >= bytes_total; }
  double bytes_per_second() const;
  double seconds_left() const;  // at the mean rate so far
};

// "loading [####....] 12.00/570.00 GB, 4.00 GB/s, 140 s left"
std::string ProgressBar(const std::string& what, const ProgressState& state);

class ProgressReport {
 public:
  struct Outputs {
    std::function<void(const ProgressState&)> show;  // of each report
    absl::Duration interval;                         // between reports; the last one always comes
  };

  // A bar on standard error where that is a terminal, else log lines "worker.progress".
  static std::function<void(int64_t bytes_done, int64_t bytes_total)> Of(const std::string& what);

  ProgressReport(Outputs outputs, const Clock& clock)
      : outputs_(std::move(outputs)), clock_(clock), started_at_(clock.Monotonic()) {}

  void Update(int64_t bytes_done, int64_t bytes_total);

 private:
  const Outputs outputs_;
  const Clock& clock_;
  const absl::Duration started_at_;
  absl::Duration last_ = absl::ZeroDuration();  // since the start
  bool finished_ = false;
};

}  // namespace ultraspeed::worker
