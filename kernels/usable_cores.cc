#include "kernels/usable_cores.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <thread>

namespace ultraspeed::kernels {

int CoresOfQuota(const std::string& cpu_max) {
  constexpr double kCoresMax = 1 << 20;
  std::istringstream in(cpu_max);
  double quota = 0, period = 0;
  if (!(in >> quota >> period) || !(quota > 0) || !(period > 0)) return 0;
  const double cores = std::min(quota / period, kCoresMax);
  return static_cast<int>(cores) + (cores > static_cast<int>(cores) ? 1 : 0);
}

int NumUsableCores() {
  int cores = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t mask;  // of at most 1,024 cores; where there are more, the call fails
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0) cores = CPU_COUNT(&mask);
  // A container sees its own cgroup here.
  std::string cpu_max;
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  if (std::getline(file, cpu_max)) {
    const int quota = CoresOfQuota(cpu_max);
    if (quota > 0) cores = std::min(cores, quota);
  }
  return std::max(cores, 1);
}

}  // namespace ultraspeed::kernels
