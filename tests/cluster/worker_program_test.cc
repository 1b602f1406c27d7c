// What an operator types before a model is served: the node's plan, a synthetic checkpoint, its
// manifest, and a worker that runs as several ranks. Real processes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <boost/json.hpp>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "tests/cluster/process.h"
#include "tests/temporary_folder.h"

namespace ultraspeed::testing {
namespace {

using ::testing::HasSubstr;

class WorkerProgramTest : public ::testing::Test {
 protected:
  struct Outcome {
    int status;
    std::string output;
    std::string log;
  };
  Outcome Run(const std::string& program, std::vector<std::string> flags) {
    flags.insert(flags.begin(), BinFile(program));
    Process process(folder_, absl::StrCat(program, num_runs_++), std::move(flags));
    const int status = process.Wait(absl::Seconds(60));
    return {status, process.Output(), process.Log()};
  }

  // The bundled model's shape with 3 layers.
  std::string MakeModel() {
    const std::string model = folder_ + "/model";
    const Outcome made = Run("ultraspeed-synthetic",
                             {"--shape=models/tiny-mimo", "--layers=3", "--folder=" + model});
    EXPECT_EQ(made.status, 0) << made.log;
    return model;
  }

  const TemporaryFolder temporary_;
  const std::string folder_ = temporary_.path();
  int num_runs_ = 0;
};

TEST_F(WorkerProgramTest, PlansANodeWithoutGpuAndWeights) {
  const std::vector<std::string> flags = {"--plan", "--model=shape:mimo-v2.5-pro"};
  const Outcome table = Run("ultraspeed-worker", flags);
  EXPECT_EQ(table.status, 0) << table.log;
  EXPECT_THAT(table.output, HasSubstr("mimo-v2.5-pro on 8 GPUs"));
  const Outcome json =
      Run("ultraspeed-worker", {"--plan", "--model=shape:mimo-v2.5-pro", "--json", "--gpus=8",
                                "--gpu-memory-gb=100", "--read-tb-per-second=8"});
  ASSERT_EQ(json.status, 0) << json.log;
  const boost::json::value plan = boost::json::parse(json.output);
  EXPECT_EQ(plan.at("gpus").as_int64(), 8);
  EXPECT_EQ(plan.at("gpu_memory_bytes").as_int64(), 100'000'000'000);
  EXPECT_EQ(plan.at("read_tb_per_second").as_double(), 8);
  EXPECT_GT(plan.at("contexts").as_array().size(), 3u);
}

TEST_F(WorkerProgramTest, PlansThatAreImpossibleExitWithTheReason) {
  const auto refusal = [&](const char* gpus) {
    const Outcome outcome =
        Run("ultraspeed-worker", {"--plan", "--model=shape:mimo-v2.5-pro", gpus});
    EXPECT_EQ(outcome.status, 1);
    EXPECT_EQ(outcome.output, "");
    return outcome.log;
  };
  EXPECT_THAT(refusal("--gpus=3"), HasSubstr("gpus: is 3; must be 1, 2, 4 or 8"));
  EXPECT_THAT(refusal("--gpus=2"), HasSubstr("GB short"));
}

TEST_F(WorkerProgramTest, ASyntheticModelIsServedByTwoRanks) {
  const std::string model = MakeModel();
  Server worker(folder_, "worker", "ultraspeed-worker",
                {"--model=" + model, "--device=cpu", "--gpus=2", "--kv-tokens=1024"});
  ASSERT_TRUE(worker.AwaitReady()) << worker.process().Log();
  EXPECT_THAT(worker.process().Log(), HasSubstr("2 ranks of"));
  worker.process().Signal(SIGTERM);
  EXPECT_EQ(worker.process().Wait(absl::Seconds(20)), 0) << worker.process().Log();
}

TEST_F(WorkerProgramTest, RanksThatDoNotDivideAreRefusedByName) {
  const Outcome outcome =
      Run("ultraspeed-worker", {"--model=" + MakeModel(), "--device=cpu", "--gpus=8"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.log, HasSubstr("num_key_value_heads: is 4; 8 GPUs need a multiple of 8"));
}

TEST_F(WorkerProgramTest, AManifestIsCheckedBeforeLoading) {
  const std::string model = MakeModel(), manifest = folder_ + "/sums";
  std::ofstream(manifest) << std::string(64, '0') << "  config.json\n";
  const Outcome outcome =
      Run("ultraspeed-worker", {"--model=" + model, "--device=cpu", "--manifest=" + manifest});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.log, HasSubstr("is not in the manifest " + manifest));
}

TEST_F(WorkerProgramTest, TheGeneratorLeavesFilledFoldersAlone) {
  const Outcome outcome =
      Run("ultraspeed-synthetic", {"--shape=models/tiny-mimo", "--folder=models"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.log, HasSubstr("must be a new or an empty folder"));
  EXPECT_THAT(Run("ultraspeed-synthetic", {"--folder=" + folder_ + "/x", "--layers=71"}).log,
              HasSubstr("layers: is 71; must be from 1 to 70"));
}

}  // namespace
}  // namespace ultraspeed::testing
