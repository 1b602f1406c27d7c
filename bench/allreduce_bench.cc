#include "bench/allreduce_bench.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/cuda/device.h"

namespace ultraspeed::bench {

absl::StatusOr<boost::json::object> MeasureAllReduce(const AllReduceOptions& options) {
  if (options.num_calls < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--calls: is ", options.num_calls, "; must be at least 1"));
  }
  ASSIGN_OR_RETURN(const worker::NodeSums sums,
                   worker::MeasureNodeSums(options.num_gpus, options.num_calls));
  if (sums.num_wrong > 0) {
    return absl::InternalError(absl::StrCat(sums.num_wrong, " elements of ", sums.num_sums,
                                            " sums and ", sums.num_gathers,
                                            " gathers have other bits than the sum in rank order"));
  }
  boost::json::array times;
  for (const worker::NodeSumTimes& size : sums.times) {
    times.push_back({{"bytes_fp32", size.bytes},
                     {"peers_us", size.peers_us},
                     {"parts_through_nccl_us", size.parts_us},
                     {"nccl_all_reduce_us", size.nccl_us},
                     {"peers_floor_us", size.floor_us}});
  }
  return boost::json::object{
      {"device", sums.device},
      {"gpus", options.num_gpus},
      {"what",
       "median of 21 replays of a graph of 20 sums, slowest rank; peers: one kernel over peer "
       "memory, parts rounded to bf16, added in fp32 in rank order (sizes beyond 2 MiB in several "
       "kernels); parts through NCCL: the same bits, parts moved by NCCL, added by a kernel; nccl: "
       "ncclAllReduce "
       "of fp32 in NCCL's order; floor: the bytes that peers sends at the rate of a peer copy"},
      {"sums_checked", sums.num_sums},
      {"gathers_checked", sums.num_gathers},
      {"wrong_elements", sums.num_wrong},
      {"check_seconds", sums.check_seconds},
      {"peer_copy_gb_per_second", sums.peer_bytes_per_second / 1e9},
      {"times", std::move(times)}};
}

}  // namespace ultraspeed::bench
