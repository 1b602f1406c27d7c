// UUID version 7 (RFC 9562): 48 bits of milliseconds, then random bits, so ids sort by time of
// minting.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "common/clock.h"

namespace ultraspeed {

// "018f3b2e-7c1a-7d2b-9e4f-0a1b2c3d4e5f". The random bits come from the kernel.
std::string NewUuidV7(const Clock& clock = RealClock());

// 8-4-4-4-12 lower- or upper-case hexadecimal digits, any version.
bool IsUuid(absl::string_view text);

}  // namespace ultraspeed
