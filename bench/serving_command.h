// `ultraspeed-bench serving` and `http` on the command line: their flags, and the runs.
#pragma once

#include "absl/status/status.h"

namespace ultraspeed::bench {

// Print a table, or one JSON object. REQUIRES: the flags are parsed.
absl::Status RunServing(bool json);
absl::Status RunHttp(bool json);

}  // namespace ultraspeed::bench
