// One rank's end of its node's group, for the forward passes; of a model on one GPU, nothing.
//
// While memory is only counted there is a rank but no group yet.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "worker/cuda/node_group.h"
#include "worker/model/sharding_plan.h"

namespace ultraspeed::worker::cuda {

struct RankLink {
  NodeGroup* group = nullptr;  // null when rank.count is 1
  Rank rank = {};

  bool divided() const { return rank.count > 1; }
  int FirstToken(int part_vocabulary) const { return rank.index * part_vocabulary; }

  // As NodeGroup's; with one rank, nothing.
  void Sum(float* data, size_t count, void* workspace, cudaStream_t stream) const {
    if (group != nullptr) group->Sum(rank.index, data, count, workspace, stream);
  }
  size_t SumWorkspaceBytes(size_t count) const {
    return divided() ? NodeGroup::SumWorkspaceBytes(rank.count, count) : 0;
  }
  void Gather(const float* part, int rows, int columns, float* out, void* workspace,
              cudaStream_t stream) const {
    group->Gather(rank.index, part, rows, columns, out, workspace, stream);
  }
  size_t GatherWorkspaceBytes(int rows, int columns) const {
    return divided() ? NodeGroup::GatherWorkspaceBytes(rank.count, rows, columns) : 0;
  }
};

}  // namespace ultraspeed::worker::cuda
