// How a checkpoint is loaded: which part of it, and how its bytes are brought in.
//
// Callers: the executors. Plain data.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "worker/model/read_options.h"
#include "worker/model/sharding_plan.h"

namespace ultraspeed::worker {

class SharedReads;  // shared_reads.h

// Of this rank's part, in checkpoint form. Called on the loading thread after each layer and every
// 64 MiB; the last call has both equal.
using LoadProgress = std::function<void(int64_t bytes_done, int64_t bytes_total)>;

// One line for the log. Any rank's thread may call, also two at once.
using LoadNotice = std::function<void(const std::string& text)>;

struct LoadOptions {
  Rank rank = {};
  ReadOptions reads = {};
  // Of all ranks that load in this process at the same time; null = this rank reads by itself, as
  // `reads` says.
  SharedReads* shared = nullptr;
  // Folder of packed weights (weights_cache.h): read instead of the checkpoint where they fit, else
  // written after the load. Empty = none. Only where the weights lie in one piece, on a GPU.
  std::string weights_cache = {};
  LoadProgress progress = {};  // may be null
  LoadNotice notice = {};      // may be null
};

}  // namespace ultraspeed::worker
