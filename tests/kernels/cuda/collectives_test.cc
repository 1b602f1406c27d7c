// Sums and gathers of several ranks that share one GPU, a stream each: the same kernels and inboxes
// as over NVLink, on a machine with a single GPU. tests/worker/cuda/ranks_test.cc has several.
#include "kernels/cuda/collectives.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "kernels/cuda/sum_check.h"
#include "tests/kernels/cuda/device_array.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr size_t kCapacity = 1024;  // words of a part: larger operations go in pieces
constexpr size_t kCountMax = 20000;

class Ranks {
 public:
  explicit Ranks(int num_ranks, uint64_t wait_ns_max = 20'000'000'000) : num_wrong_(1) {
    num_wrong_.Fill(0);
    void* reports = nullptr;
    Expect(cudaMallocHost(&reports, kPeersMax * sizeof(PeerWaitReport)));
    reports_ = static_cast<PeerWaitReport*>(reports);
    for (int r = 0; r < num_ranks; ++r) {
      reports_[r] = {};
      ranks_.push_back(std::make_unique<One>(num_ranks));
    }
    for (int r = 0; r < num_ranks; ++r) {
      PeerInbox& peers = ranks_[r]->peers;
      peers = {.rank = r,
               .num_ranks = num_ranks,
               .push = {},
               .inbox = ranks_[r]->inbox.get(),
               .capacity = kCapacity,
               .turn = ranks_[r]->turn.get(),
               .report = &reports_[r],
               .wait_ns_max = wait_ns_max};
      for (int other = 0; other < num_ranks; ++other)
        peers.push[other] = ranks_[other]->inbox.get() + r * kCapacity;
      EmptyPeerInbox(peers, ranks_[r]->stream);
    }
    Synchronize();
  }
  ~Ranks() {
    Synchronize();
    cudaFreeHost(reports_);
  }
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  int count() const { return static_cast<int>(ranks_.size()); }
  cudaStream_t stream(int rank) const { return ranks_[rank]->stream; }
  const PeerWaitReport& report(int rank) const { return reports_[rank]; }

  void Sum(int rank, size_t count, uint32_t call) {
    One& one = *ranks_[rank];
    FillPart(one.data.get(), count, call, rank, one.stream);
    SumOverPeers(one.peers, one.data.get(), count, one.stream);
    CheckSum(one.data.get(), count, call, this->count(), num_wrong_.get(), one.stream);
  }
  void Gather(int rank, int rows, int columns, uint32_t call) {
    One& one = *ranks_[rank];
    FillPart(one.data.get(), static_cast<size_t>(rows) * columns, call, rank, one.stream);
    GatherOverPeers(one.peers, one.data.get(), rows, columns, one.out.get(), one.stream);
    CheckGather(one.out.get(), rows, columns, call, count(), num_wrong_.get(), one.stream);
  }
  unsigned long long num_wrong() const { return num_wrong_.ToHost()[0]; }

 private:
  struct One {
    explicit One(int num_ranks)
        : inbox(3 * num_ranks * kCapacity), turn(1), data(kCountMax), out(num_ranks * kCountMax) {
      Expect(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    }
    ~One() { cudaStreamDestroy(stream); }
    cudaStream_t stream = nullptr;
    DeviceArray<uint32_t> inbox;
    DeviceArray<PeerTurn> turn;
    DeviceArray<float> data, out;
    PeerInbox peers;
  };

  std::vector<std::unique_ptr<One>> ranks_;
  DeviceArray<unsigned long long> num_wrong_;
  PeerWaitReport* reports_ = nullptr;
};

// A kernel that is loaded while another waits for it would wait for that one: all are loaded here.
void LoadKernels() {
  Ranks one(1);
  one.Sum(0, 9, 0);
  one.Gather(0, 2, 3, 1);
  EXPECT_EQ(one.num_wrong(), 0u);
}

constexpr size_t kCounts[] = {1, 2, 7, 8, 9, 127, 129, 2047, 2048, 2049, 6144, 19999};

TEST(CudaCollectives, ThousandsOfSumsAndGathersOfAnySizeAreRightOnEveryRank) {
  SKIP_WITHOUT_GPU();
  LoadKernels();
  for (const int num_ranks : {2, 3, 4}) {
    Ranks ranks(num_ranks);
    for (uint32_t call = 0; call < 3000; ++call) {
      const size_t count = kCounts[call * 5 % std::size(kCounts)];
      for (int r = 0; r < num_ranks; ++r) {
        if (call % 4 == 3) {
          ranks.Gather(r, 1 + static_cast<int>(call % 7), 1 + static_cast<int>(call % 517), call);
        } else {
          ranks.Sum(r, count, call);
        }
      }
    }
    EXPECT_EQ(ranks.num_wrong(), 0u) << num_ranks << " ranks";
    for (int r = 0; r < num_ranks; ++r) EXPECT_EQ(ranks.report(r).is_stuck, 0u);
  }
}

// The turn is counted on the device, so a captured call takes the next one each time.
TEST(CudaCollectives, AReplayedGraphTakesTheNextTurn) {
  SKIP_WITHOUT_GPU();
  LoadKernels();
  Ranks ranks(2);
  cudaGraphExec_t graphs[2] = {};
  for (int r = 0; r < 2; ++r) {
    cudaGraph_t captured = nullptr;
    Expect(cudaStreamBeginCapture(ranks.stream(r), cudaStreamCaptureModeThreadLocal));
    for (uint32_t call = 0; call < 5; ++call) ranks.Sum(r, kCounts[call * 2], call);
    Expect(cudaStreamEndCapture(ranks.stream(r), &captured));
    Expect(cudaGraphInstantiate(&graphs[r], captured, 0));
    Expect(cudaGraphDestroy(captured));
    Expect(cudaGraphUpload(graphs[r], ranks.stream(r)));
  }
  Synchronize();
  for (uint32_t replay = 0; replay < 200; ++replay) {
    for (int r = 0; r < 2; ++r) Expect(cudaGraphLaunch(graphs[r], ranks.stream(r)));
    for (int r = 0; r < 2; ++r) ranks.Sum(r, 33, replay);
  }
  EXPECT_EQ(ranks.num_wrong(), 0u);
  for (cudaGraphExec_t graph : graphs) Expect(cudaGraphExecDestroy(graph));
}

TEST(CudaCollectives, AWaitForAMissingRankEndsAndIsReported) {
  SKIP_WITHOUT_GPU();
  LoadKernels();
  Ranks ranks(3, /*wait_ns_max=*/100'000'000);
  for (const int r : {0, 2}) ranks.Sum(r, 100, 0);
  for (const int r : {0, 2}) ranks.Sum(r, 100, 1);  // after that nobody waits any more
  Synchronize();
  for (const int r : {0, 2}) {
    EXPECT_EQ(ranks.report(r).is_stuck, 1u) << r;
    EXPECT_EQ(ranks.report(r).peer, 1) << r;
    EXPECT_EQ(ranks.report(r).operation, 0u) << r;
  }
  EXPECT_EQ(ranks.report(1).is_stuck, 0u);
}

// What travels in another way comes to the same bits.
TEST(CudaCollectives, PartsThatAreAddedAtOnceGiveTheSameSums) {
  SKIP_WITHOUT_GPU();
  for (const int num_ranks : {1, 2, 8}) {
    for (const size_t count : kCounts) {
      const size_t words = SumWords(count);
      const DeviceArray<float> part(count), sum(count);
      const DeviceArray<uint32_t> all(words * num_ranks);
      DeviceArray<unsigned long long> num_wrong(1);
      num_wrong.Fill(0);
      for (int r = 0; r < num_ranks; ++r) {
        FillPart(part.get(), count, 5, r, nullptr);
        RoundPart(part.get(), count, all.get() + r * words, nullptr);
      }
      AddParts(all.get(), num_ranks, count, sum.get(), nullptr);
      CheckSum(sum.get(), count, 5, num_ranks, num_wrong.get(), nullptr);
      EXPECT_EQ(num_wrong.ToHost()[0], 0u) << num_ranks << " ranks, " << count;
    }
    constexpr int kRows = 3, kColumns = 129, kPart = kRows * kColumns;
    const DeviceArray<float> parts(kPart * num_ranks), out(kPart * num_ranks);
    DeviceArray<unsigned long long> num_wrong(1);
    num_wrong.Fill(0);
    for (int r = 0; r < num_ranks; ++r) FillPart(parts.get() + r * kPart, kPart, 6, r, nullptr);
    PlaceParts(parts.get(), num_ranks, kRows, kColumns, out.get(), nullptr);
    CheckGather(out.get(), kRows, kColumns, 6, num_ranks, num_wrong.get(), nullptr);
    EXPECT_EQ(num_wrong.ToHost()[0], 0u) << num_ranks;
  }
}

// The check itself sees one wrong bit.
TEST(CudaCollectives, AWrongBitIsCounted) {
  SKIP_WITHOUT_GPU();
  constexpr size_t kCount = 100;
  const DeviceArray<float> part(kCount), sum(kCount);
  const DeviceArray<uint32_t> words(SumWords(kCount));
  DeviceArray<unsigned long long> num_wrong(1);
  num_wrong.Fill(0);
  FillPart(part.get(), kCount, 1, 0, nullptr);
  RoundPart(part.get(), kCount, words.get(), nullptr);
  AddParts(words.get(), 1, kCount, sum.get(), nullptr);
  std::vector<float> damaged = sum.ToHost();
  damaged[77] = std::nextafter(damaged[77], 1e9f);
  const DeviceArray<float> wrong(damaged);
  CheckSum(wrong.get(), kCount, 1, 1, num_wrong.get(), nullptr);
  EXPECT_EQ(num_wrong.ToHost()[0], 1u);
}

}  // namespace
}  // namespace ultraspeed::kernels::cuda
