// Waits for what another thread or process is about to do. Polls; false after `timeout`.
#pragma once

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace ultraspeed::testing {

template <typename Predicate>
bool Eventually(Predicate predicate, absl::Duration timeout) {
  const absl::Time end = absl::Now() + timeout;
  while (!predicate()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return true;
}

}  // namespace ultraspeed::testing
