// The generic cell rate algorithm (ITU-T I.371) in its continuous-state leaky-bucket form, as
// arithmetic only: no clock, no lock, no store. Both rate limiters use it, so they cannot disagree.
//
// A bucket holds what was taken and has not leaked out yet. It leaks at the limit, all the time; a
// request passes if what it takes still fits under the burst. Levels are counted in parts, chosen
// so that a limit of L units per minute leaks exactly L parts per microsecond: nothing is ever
// rounded, and sums of admitted cost are exact. Every value stays below 2^53, so the double
// arithmetic of a Redis script is exact too.
#pragma once

#include <algorithm>
#include <cstdint>

namespace ultraspeed::router {

inline constexpr int64_t kMicrosPerMinute = 60'000'000;
inline constexpr int64_t kPartsPerUnit = kMicrosPerMinute;
// Units per minute, and units of burst: (2^53 - 1) / kPartsPerUnit, rounded down to a plain number.
inline constexpr int64_t kRateLimitMax = 100'000'000;

// `burst` units may pass at once after a quiet time. REQUIRES: both in 1..kRateLimitMax.
struct GcraRate {
  int64_t limit_per_minute = 1;
  int64_t burst = 1;

  int64_t burst_parts() const { return burst * kPartsPerUnit; }
};

struct GcraBucket {
  int64_t level_parts = 0;  // 0..2^53
  int64_t updated_us = 0;   // microseconds since any fixed origin

  friend bool operator==(const GcraBucket&, const GcraBucket&) = default;
};

// The bucket as it is at `now_us`. Over a clock that went back nothing leaks.
inline GcraBucket Leak(const GcraBucket& bucket, const GcraRate& rate, int64_t now_us) {
  const int64_t elapsed_us = std::max<int64_t>(0, now_us - bucket.updated_us);
  const bool is_empty = elapsed_us > bucket.level_parts / rate.limit_per_minute;
  return {.level_parts = is_empty ? 0 : bucket.level_parts - elapsed_us * rate.limit_per_minute,
          .updated_us = now_us};
}

// How long until `units` pass: 0 = they pass now, negative = never (more than the burst).
// REQUIRES: `bucket` is leaked to now; units >= 0.
inline int64_t MicrosUntilPass(const GcraBucket& bucket, const GcraRate& rate, int64_t units) {
  if (units > rate.burst) return -1;
  const int64_t over = bucket.level_parts + units * kPartsPerUnit - rate.burst_parts();
  if (over <= 0) return 0;
  return (over + rate.limit_per_minute - 1) / rate.limit_per_minute;
}

// Whole units that would pass now, and microseconds until the bucket is empty.
inline int64_t UnitsLeft(const GcraBucket& bucket, const GcraRate& rate) {
  return std::max<int64_t>(0, rate.burst_parts() - bucket.level_parts) / kPartsPerUnit;
}
inline int64_t MicrosUntilEmpty(const GcraBucket& bucket, const GcraRate& rate) {
  return (bucket.level_parts + rate.limit_per_minute - 1) / rate.limit_per_minute;
}

// Adds what was taken, or gives back what was not used after all (negative). Never below empty: a
// bucket does not lend from time in which it had nothing to leak.
inline GcraBucket Take(const GcraBucket& bucket, int64_t units) {
  return {.level_parts = std::max<int64_t>(0, bucket.level_parts + units * kPartsPerUnit),
          .updated_us = bucket.updated_us};
}

}  // namespace ultraspeed::router
