// How a checkpoint is loaded: which part of it, and how its bytes are brought in.
//
// Callers: the executors. Plain data.
#pragma once

#include <cstdint>
#include <functional>

#include "worker/model/sharding_plan.h"

namespace ultraspeed::worker {

// Of this rank's part, in checkpoint form. Called on the loading thread after each layer; the last
// call has both equal.
using LoadProgress = std::function<void(int64_t bytes_done, int64_t bytes_total)>;

struct LoadOptions {
  Rank rank = {};
  int read_threads = 4;  // that bring in the files' pages ahead of the loading thread; 0 = none
  LoadProgress progress = {};  // may be null
};

}  // namespace ultraspeed::worker
