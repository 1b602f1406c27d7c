// Sums and gathers over the GPUs of a node, bit for bit, whichever way they travel.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <mutex>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/worker/cpu/recorded_run.h"
#include "tests/worker/cuda/ranks_fixture.h"
#include "worker/cuda/check.h"

namespace ultraspeed::worker {
namespace {

using cuda::NodeGroup;
using testing::HasSubstr;

float RoundedToBf16(float x) {
  uint32_t bits = std::bit_cast<uint32_t>(x);
  bits += 0x7fffu + (bits >> 16 & 1u);
  const float rounded = std::bit_cast<float>(bits & 0xffff0000u);
  return rounded == 0.0f ? 0.0f : rounded;
}

// Values of all magnitudes, so that the order of addition shows.
std::vector<std::vector<float>> Parts(int num_ranks, size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> mantissa(-2, 2);
  std::vector<std::vector<float>> parts(static_cast<size_t>(num_ranks), std::vector<float>(count));
  for (std::vector<float>& part : parts) {
    for (float& value : part) {
      value = std::ldexp(mantissa(random), static_cast<int>(random() % 24) - 12);
      if (random() % 16 == 0) value = random() % 2 == 0 ? 0.0f : -0.0f;
    }
  }
  return parts;
}

std::vector<uint32_t> AllBits(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (const float value : values) bits.push_back(Bits(value));
  return bits;
}

// What each rank has after `work` on its part, which lies in device memory with room for a result.
template <typename Work>
std::vector<std::vector<float>> OnAllRanks(NodeGroup& group,
                                           const std::vector<std::vector<float>>& parts,
                                           size_t result_count, size_t workspace_bytes, Work work) {
  std::vector<std::vector<float>> results(parts.size(), std::vector<float>(result_count));
  struct Memory {
    float *part, *result;
    void* workspace;
  };
  std::vector<Memory> memory(parts.size());
  group.Run([&](int rank) {
    const auto r = static_cast<size_t>(rank);
    CUDA_CHECK(cudaMalloc(&memory[r].part, parts[r].size() * sizeof(float)));
    CUDA_CHECK(cudaMalloc(&memory[r].result, result_count * sizeof(float)));
    CUDA_CHECK(cudaMalloc(&memory[r].workspace, workspace_bytes));
    CUDA_CHECK(cudaMemcpy(memory[r].part, parts[r].data(), parts[r].size() * sizeof(float),
                          cudaMemcpyHostToDevice));
  });
  group.Run([&](int rank) {
    const auto r = static_cast<size_t>(rank);
    work(rank, memory[r].part, memory[r].result, memory[r].workspace);
    CUDA_CHECK(cudaDeviceSynchronize());
    group.CheckWaits(rank);
    CUDA_CHECK(cudaMemcpy(results[r].data(), memory[r].result, result_count * sizeof(float),
                          cudaMemcpyDeviceToHost));
  });
  for (const Memory& of_rank : memory) {
    CUDA_CHECK(cudaFree(of_rank.part));
    CUDA_CHECK(cudaFree(of_rank.result));
    CUDA_CHECK(cudaFree(of_rank.workspace));
  }
  return results;
}

TEST_F(CudaRanksTest, SumsAreAddedInRankOrderWhicheverWayTheyTravel) {
  for (const int num_ranks : RankCounts()) {
    absl::StatusOr<std::unique_ptr<NodeGroup>> group =
        NodeGroup::Create({.num_ranks = num_ranks, .wait_ns_max = kWaitNsMax});
    ASSERT_TRUE(group.ok()) << group.status();
    std::printf("%d ranks: %s\n", num_ranks, (*group)->description().c_str());
    // The last ones are more than an inbox holds.
    for (const size_t count :
         {1, 2, 7, 8, 9, 127, 129, 384, 6143, 49153, 524288, 524289, 1300001}) {
      const std::vector<std::vector<float>> parts =
          Parts(num_ranks, count, static_cast<uint32_t>(count));
      std::vector<float> want(count);
      for (size_t i = 0; i < count; ++i) {
        want[i] = RoundedToBf16(parts[0][i]);
        for (size_t r = 1; r < parts.size(); ++r) want[i] += RoundedToBf16(parts[r][i]);
      }
      const size_t workspace = NodeGroup::SumWorkspaceBytes(num_ranks, count);
      const auto copy = [&](float* part, float* result) {
        CUDA_CHECK(cudaMemcpy(result, part, count * sizeof(float), cudaMemcpyDeviceToDevice));
      };
      const auto check = [&](const std::vector<std::vector<float>>& sums, const char* way) {
        for (const std::vector<float>& sum : sums)
          EXPECT_TRUE(AllBits(sum) == AllBits(want))
              << num_ranks << " ranks, " << count << ", " << way;
      };
      check(OnAllRanks(**group, parts, count, workspace,
                       [&](int rank, float* part, float* result, void* space) {
                         copy(part, result);
                         (*group)->Sum(rank, result, count, space, nullptr);
                       }),
            "as the group chooses");
      if ((*group)->has_peers()) {
        check(OnAllRanks(**group, parts, count, workspace,
                         [&](int rank, float* part, float* result, void* /*space*/) {
                           copy(part, result);
                           kernels::cuda::SumOverPeers((*group)->peers(rank), result, count,
                                                       nullptr);
                         }),
              "over peer memory");
      }
      if ((*group)->nccl() != nullptr) {
        check(OnAllRanks(**group, parts, count, workspace,
                         [&](int rank, float* part, float* result, void* space) {
                           copy(part, result);
                           (*group)->SumOfGathered(rank, result, count, space, nullptr);
                         }),
              "gathered by NCCL");
      }
      if ((*group)->nccl() != nullptr && (*group)->DividesIntoSlices(count)) {
        check(OnAllRanks(**group, parts, count, workspace,
                         [&](int rank, float* part, float* result, void* space) {
                           copy(part, result);
                           (*group)->SumOfSlices(rank, result, count, space, nullptr);
                         }),
              "sliced by NCCL");
      }
    }
  }
}

TEST_F(CudaRanksTest, GathersPutEveryPartInItsPlace) {
  for (const int num_ranks : RankCounts()) {
    absl::StatusOr<std::unique_ptr<NodeGroup>> group =
        NodeGroup::Create({.num_ranks = num_ranks, .wait_ns_max = kWaitNsMax});
    ASSERT_TRUE(group.ok()) << group.status();
    for (const auto& [rows, columns] : std::vector<std::pair<int, int>>{
             {1, 1}, {1, 7}, {3, 129}, {8, 512}, {8, 19072}, {64, 9999}}) {
      const auto count = static_cast<size_t>(rows) * static_cast<size_t>(columns);
      const std::vector<std::vector<float>> parts = Parts(num_ranks, count, 3);
      const size_t width = static_cast<size_t>(num_ranks) * static_cast<size_t>(columns);
      std::vector<float> want(static_cast<size_t>(rows) * width);
      for (size_t r = 0; r < parts.size(); ++r) {
        for (size_t i = 0; i < count; ++i) {
          const size_t row = i / static_cast<size_t>(columns),
                       column = i % static_cast<size_t>(columns);
          const float part = parts[r][i] == 0.0f ? 0.0f : parts[r][i];  // no minus zero arrives
          want[row * width + r * static_cast<size_t>(columns) + column] = part;
        }
      }
      const std::vector<std::vector<float>> gathered = OnAllRanks(
          **group, parts, want.size(), NodeGroup::GatherWorkspaceBytes(num_ranks, rows, columns),
          [&, rows = rows, columns = columns](int rank, float* part, float* result, void* space) {
            (*group)->Gather(rank, part, rows, columns, result, space, nullptr);
          });
      for (const std::vector<float>& result : gathered)
        EXPECT_TRUE(AllBits(result) == AllBits(want))
            << num_ranks << " ranks, " << rows << "x" << columns;
    }
  }
}

// A rank that never comes: the others give up in time and say so.
TEST_F(CudaRanksTest, AWaitForAMissingRankEndsWithItsName) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";  // a process of its own, with its own CUDA
  const auto wait = [] {
    const auto group = NodeGroup::Create({.num_ranks = 2, .wait_ns_max = 200'000'000});
    if (!group.ok() || !(*group)->has_peers()) std::abort();
    (*group)->Run([&](int rank) {
      if (rank != 0) return;
      float* data = nullptr;
      CUDA_CHECK(cudaMalloc(&data, sizeof(float)));
      (*group)->Sum(rank, data, 1, nullptr, nullptr);
      CUDA_CHECK(cudaDeviceSynchronize());
      (*group)->CheckWaits(rank);
    });
  };
  EXPECT_DEATH(wait(), "GPU 0 waited more than 0.2 s for the data of GPU 1 in operation 0");
}

}  // namespace
}  // namespace ultraspeed::worker
