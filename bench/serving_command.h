// `ultraspeed-bench serving` on the command line: its flags, and the run.
#pragma once

#include "absl/status/status.h"

namespace ultraspeed::bench {

// Prints a table, or one JSON object. REQUIRES: the flags are parsed.
absl::Status RunServing(bool json);

}  // namespace ultraspeed::bench
