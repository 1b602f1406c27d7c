// A packer for ReadTarget and ReadDrafter that keeps nothing: for who wants only what reading does,
// the names and shapes that are asked for, or the reading itself.
#pragma once

#include "worker/model/config.h"

namespace ultraspeed::worker {

struct DroppingPacker {
  struct Dropped {};
  struct Storage {
    using Floats = Dropped;
    using Bf16s = Dropped;
    using Matrix = Dropped;
    using Mlp = Dropped;
    using Experts = Dropped;
  };
  template <typename T>
  Dropped Floats(const T& /*values*/) {
    return {};
  }
  template <typename T>
  Dropped Bf16s(const T& /*values*/) {
    return {};
  }
  template <typename T>
  Dropped Router(const T& /*values*/, Dropped /*norm*/, int /*num_experts*/) {
    return {};
  }
  template <typename T>
  Dropped Matrix(const T& /*matrix*/) {
    return {};
  }
  template <typename T>
  Dropped Mlp(const T& /*mlp*/) {
    return {};
  }
  Dropped NewExperts(const ModelConfig& /*config*/) { return {}; }
  template <typename T>
  void AddExpert(Dropped& /*experts*/, int /*expert*/, const T& /*mlp*/) {}
};

}  // namespace ultraspeed::worker
