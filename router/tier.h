// The two service tiers as the router's own value: entitlements, limits, prices and the ledger
// speak of it. Generated protobuf types stay in the services.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"

namespace ultraspeed::router {

// The numbers are stored: never renumber.
enum class Tier : uint8_t { kStandard = 0, kUltraspeed = 1 };

inline constexpr int kNumTiers = 2;
inline constexpr std::array<Tier, kNumTiers> kTiers = {Tier::kStandard, Tier::kUltraspeed};

inline constexpr absl::string_view TierName(Tier tier) {
  return tier == Tier::kUltraspeed ? "ultraspeed" : "standard";
}

inline std::optional<Tier> ParseTier(absl::string_view name) {
  for (const Tier tier : kTiers) {
    if (TierName(tier) == name) return tier;
  }
  return std::nullopt;
}

}  // namespace ultraspeed::router
