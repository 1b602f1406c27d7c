// How long a checkpoint takes to load, beside what its files' bytes take to be read and nothing
// more, from a cold and from a warm page cache.
//
// Caller: bench_main.cc. Thread: any; starts threads of its own.
#pragma once

#include <boost/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "worker/device.h"

namespace ultraspeed::bench {

struct LoadBenchOptions {
  worker::Device device = worker::Device::kCpu;
  bool stream_only = false;          // no executors: files larger than the memory
  worker::ExecutorOptions executor;  // model_folder, num_ranks, reads.threads, experts, ...
};

// Three kinds of reading, each also as raw reads of whole files, as the loader's stream without
// packing, and as the making of an executor: "cold_cached" (through the page cache, which has
// nothing of the files), "cold_direct" (past it) and "warm_cached". With executor.weights_cache
// also "packed": the second start from there, cold.
absl::StatusOr<boost::json::object> MeasureLoad(const LoadBenchOptions& options);

}  // namespace ultraspeed::bench
