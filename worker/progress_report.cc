#include "worker/progress_report.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "absl/strings/str_format.h"
#include "common/logging.h"

namespace ultraspeed::worker {
namespace {

constexpr int kBarWidth = 40;
constexpr absl::Duration kBarInterval = absl::Milliseconds(100);
constexpr absl::Duration kLogInterval = absl::Seconds(5);

double Gigabytes(int64_t bytes) { return static_cast<double>(bytes) / 1e9; }

}  // namespace

double ProgressState::bytes_per_second() const {
  return static_cast<double>(bytes_done) / std::max(seconds, 1e-3);
}

double ProgressState::seconds_left() const {
  return static_cast<double>(bytes_total - bytes_done) / std::max(bytes_per_second(), 1.0);
}

std::string ProgressBar(const std::string& what, const ProgressState& state) {
  const double share = state.bytes_total > 0 ? static_cast<double>(state.bytes_done) /
                                                   static_cast<double>(state.bytes_total)
                                             : 1.0;
  const auto filled = static_cast<size_t>(kBarWidth * std::clamp(share, 0.0, 1.0));
  return absl::StrFormat("%s [%s%s] %.2f/%.2f GB, %.2f GB/s, %.0f s left", what,
                         std::string(filled, '#'), std::string(kBarWidth - filled, '.'),
                         Gigabytes(state.bytes_done), Gigabytes(state.bytes_total),
                         state.bytes_per_second() / 1e9, state.seconds_left());
}

std::function<void(int64_t, int64_t)> ProgressReport::Of(const std::string& what) {
  const bool terminal = isatty(STDERR_FILENO) != 0;
  Outputs outputs;
  outputs.interval = terminal ? kBarInterval : kLogInterval;
  if (terminal) {
    outputs.show = [what](const ProgressState& state) {
      std::fprintf(stderr, "\r%s %s", ProgressBar(what, state).c_str(), state.done() ? "\n" : "");
    };
  } else {
    outputs.show = [what](const ProgressState& state) {
      Log(LogLevel::kInfo, "worker.progress",
          {{"what", what},
           {"gb_done", Gigabytes(state.bytes_done)},
           {"gb_total", Gigabytes(state.bytes_total)},
           {"gb_per_second", state.bytes_per_second() / 1e9},
           {"seconds_left", state.seconds_left()}});
    };
  }
  auto report = std::make_shared<ProgressReport>(std::move(outputs), RealClock());
  return [report](int64_t done, int64_t total) { report->Update(done, total); };
}

void ProgressReport::Update(int64_t bytes_done, int64_t bytes_total) {
  const absl::Duration now = clock_.Monotonic() - started_at_;
  const ProgressState state = {bytes_done, bytes_total, absl::ToDoubleSeconds(now)};
  if (finished_ || (!state.done() && now - last_ < outputs_.interval)) return;
  last_ = now;
  finished_ = state.done();
  outputs_.show(state);
}

}  // namespace ultraspeed::worker
