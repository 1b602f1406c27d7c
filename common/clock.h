// The only source of time. Code that must be tested takes a Clock&; main passes RealClock(), tests
// a FakeClock.
//
// Thread: any. Wall time is for records and ids; durations are differences of one process's
// Monotonic() only.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace ultraspeed {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;            // wall time
  virtual absl::Duration Monotonic() const = 0;  // since an arbitrary origin; never goes back
};

class SystemClock : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
  absl::Duration Monotonic() const override {
    return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
  }
};

inline Clock& RealClock() {
  static SystemClock clock;
  return clock;
}

// Stands still until advanced.
class FakeClock : public Clock {
 public:
  explicit FakeClock(absl::Time start = absl::FromUnixSeconds(1'800'000'000)) : start_(start) {}

  absl::Time Now() const override { return start_ + Monotonic(); }
  absl::Duration Monotonic() const override {
    return absl::Nanoseconds(elapsed_ns_.load(std::memory_order_relaxed));
  }
  void Advance(absl::Duration duration) {
    elapsed_ns_.fetch_add(absl::ToInt64Nanoseconds(duration), std::memory_order_relaxed);
  }

 private:
  const absl::Time start_;
  std::atomic<int64_t> elapsed_ns_{0};
};

}  // namespace ultraspeed
