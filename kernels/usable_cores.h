// How many threads are worth starting. The machine's core count is wrong in a container.
#pragma once

#include <string>

namespace ultraspeed::kernels {

// Cores that this process may use at once: those of the calling thread's affinity mask (taskset,
// container cpusets), at most its CPU quota rounded up (cgroup v2, which Kubernetes' CPU limits
// set). At least 1.
int NumUsableCores();

// The quota in a cgroup's cpu.max, "QUOTA PERIOD" in microseconds, as cores rounded up; 0: none
// ("max", or nothing that can be read as a quota).
int CoresOfQuota(const std::string& cpu_max);

}  // namespace ultraspeed::kernels
