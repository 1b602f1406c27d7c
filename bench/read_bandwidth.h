// The memory ceiling of this machine, measured in the same process as what it is compared with.
#pragma once

#include <cstddef>

namespace ultraspeed::bench {

// Bytes per second at which `num_threads` threads sum a buffer of `bytes` bytes, best of several
// passes. A buffer that fits the last level cache measures the cache; one of hundreds of megabytes
// measures DRAM.
double MeasureReadBandwidth(size_t bytes, int num_threads);

}  // namespace ultraspeed::bench
