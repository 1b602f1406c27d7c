// Ways of bringing the bundled model's weights to the GPU: mapped, streamed, past the page cache,
// from a cache of packed weights, whole or damaged. The logits are the same bits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/temporary_folder.h"
#include "tests/worker/cuda/cpu_comparison.h"
#include "tests/worker/model/synthetic_checkpoint.h"
#include "worker/cuda/cached_weights.h"
#include "worker/cuda/check.h"
#include "worker/cuda/device.h"

namespace ultraspeed::worker {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class CudaWeightsCacheTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const absl::Status usable = CudaUsable(); !usable.ok()) GTEST_SKIP() << usable.message();
    const std::vector<int32_t> tokens = Reference().Values<int32_t>("tokens");
    text_.assign(tokens.begin(), tokens.begin() + 100);
  }

  // Logits of the text, after a load in this way; its notices are in notices_.
  std::vector<float> Load(const ReadOptions& reads, bool with_cache) {
    notices_.clear();
    progress_ = 0;
    auto executor = CreateCudaExecutor(
        {.model_folder = kBundledModel,
         .kv_tokens = 4096,
         .reads = reads,
         .weights_cache = with_cache ? cache() : "",
         .progress =
             [this](int64_t done, int64_t total) {
               progress_ = static_cast<double>(done) / static_cast<double>(total);
             },
         .notice = [this](const std::string& text) { notices_.push_back(text); }});
    if (!executor.ok()) {
      ADD_FAILURE() << executor.status();
      return {};
    }
    EXPECT_EQ(progress_, 1.0);
    return AllLogits(**executor, text_);
  }
  std::string cache() const { return folder_.path() + "/cache"; }
  std::string cache_file() const { return cache() + "/tiny-mimo.cuda.rank0-of-1.weights"; }

  TemporaryFolder folder_;
  std::vector<int32_t> text_;
  std::vector<std::string> notices_;
  double progress_ = 0;
};

TEST_F(CudaWeightsCacheTest, EveryWayOfReadingGivesTheSameBits) {
  const std::vector<float> mapped = Load({.threads = 0}, false);
  for (const DirectReads direct : {DirectReads::kNever, DirectReads::kAlways}) {
    for (const int64_t window : {int64_t{1} << 20, int64_t{256} << 20}) {
      EXPECT_EQ(Load({.threads = 3, .direct = direct, .window_bytes = window}, false), mapped);
      EXPECT_THAT(notices_, ElementsAre());
    }
  }
}

TEST_F(CudaWeightsCacheTest, TheSecondStartReadsWhatTheFirstWrote) {
  const std::vector<float> without = Load({}, false);
  EXPECT_EQ(Load({}, true), without);
  EXPECT_THAT(notices_, ElementsAre(HasSubstr("No such file"), HasSubstr("written")));
  for (const DirectReads direct : {DirectReads::kNever, DirectReads::kAlways}) {
    EXPECT_EQ(Load({.direct = direct}, true), without);
    EXPECT_THAT(notices_, ElementsAre());
  }
}

TEST_F(CudaWeightsCacheTest, ADamagedCacheIsMadeAnew) {
  const std::vector<float> without = Load({}, true);
  {
    std::fstream file(cache_file(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(fs::file_size(cache_file()) - 1000));
    file << "damage";
    ASSERT_TRUE(file.good());
  }
  EXPECT_EQ(Load({}, true), without);
  EXPECT_THAT(notices_, ElementsAre(AllOf(HasSubstr(cache_file()),
                                          HasSubstr("damaged: the checksum of chunk"),
                                          HasSubstr("made from the checkpoint")),
                                    HasSubstr("written")));
  EXPECT_EQ(Load({}, true), without);
  EXPECT_THAT(notices_, ElementsAre());
}

TEST_F(CudaWeightsCacheTest, ACacheThatCannotBeWrittenStopsNoLoad) {
  const std::vector<float> without = Load({}, false);
  std::ofstream(cache()) << "a file where the folder should be";
  EXPECT_EQ(Load({}, true), without);
  EXPECT_THAT(notices_, ElementsAre(HasSubstr("made from the checkpoint"),
                                    HasSubstr("the next start will load as this one")));
}

TEST_F(CudaWeightsCacheTest, ThePackingProbeIsRepeatable) {
  cudaStream_t stream = nullptr;
  CUDA_CHECK(cudaStreamCreate(&stream));
  const auto one = cuda::PackingProbe(stream), two = cuda::PackingProbe(stream);
  ASSERT_TRUE(one.ok() && two.ok()) << one.status() << two.status();
  EXPECT_EQ(*one, *two);
  EXPECT_EQ(one->size(), 16u);
  CUDA_CHECK(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace ultraspeed::worker
