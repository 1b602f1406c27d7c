// ultraspeed-synthetic: writes a checkpoint folder in the published layout with random contents,
// for trying loading and sharding at real shapes and sizes. Needs neither gRPC nor a GPU.
#include <unistd.h>

#include <cstdio>
#include <string>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "worker/model/checkpoint_writer.h"
#include "worker/model/served_shape.h"

ABSL_FLAG(std::string, folder, "", "Where to write; a new or an empty folder (required)");
ABSL_FLAG(std::string, shape, "mimo-v2.5-pro",
          "mimo-v2.5-pro, or a checkpoint folder whose shape is taken");
ABSL_FLAG(int, layers, 0, "Layers, the first ones of the shape; 0 = all");
ABSL_FLAG(int, experts, 0, "Experts of each layer; 0 = all");
ABSL_FLAG(std::string, experts_format, "as-shape",
          "mxfp4, fp8 (the layout of the FP8 release), or as-shape");
ABSL_FLAG(int, prediction_heads, ultraspeed::worker::kPublishedPredictionHeads,
          "Multi-token prediction heads beside the model, which loading skips");
ABSL_FLAG(uint64_t, seed, 1, "Of the contents");

namespace ultraspeed::worker {
namespace {

absl::Status Write() {
  const std::string folder = absl::GetFlag(FLAGS_folder), shape = absl::GetFlag(FLAGS_shape);
  if (folder.empty()) return absl::InvalidArgumentError("--folder is required; see --help");
  const int num_heads = absl::GetFlag(FLAGS_prediction_heads);
  if (num_heads < 0 || num_heads > 16) {
    return absl::InvalidArgumentError(
        absl::StrCat("prediction_heads: is ", num_heads, "; must be from 0 to 16"));
  }
  absl::StatusOr<ModelConfig> config =
      shape == "mimo-v2.5-pro" ? MimoV25ProShape() : LoadModelConfig(shape);
  if (!config.ok()) return config.status();
  const int layers = absl::GetFlag(FLAGS_layers), experts = absl::GetFlag(FLAGS_experts);
  config = Shortened(*config, layers == 0 ? config->num_layers : layers,
                     experts == 0 ? config->num_experts : experts);
  if (!config.ok()) return config.status();
  const std::string format = absl::GetFlag(FLAGS_experts_format);
  if (format == "mxfp4") {
    config->expert_format = kernels::WeightFormat::kMxfp4;
  } else if (format == "fp8") {
    config->expert_format = kernels::WeightFormat::kFp8Block128;
  } else if (format != "as-shape") {
    return absl::InvalidArgumentError(
        absl::StrCat("experts_format: is ", format, "; must be mxfp4, fp8 or as-shape"));
  }
  SyntheticOptions options{
      .folder = folder, .seed = absl::GetFlag(FLAGS_seed), .num_prediction_heads = num_heads};
  if (isatty(STDERR_FILENO) != 0) {
    options.progress = [](int64_t done, int64_t total) {
      std::fprintf(stderr, "\rwriting %.2f/%.2f GB%s", static_cast<double>(done) / 1e9,
                   static_cast<double>(total) / 1e9, done == total ? "\n" : "");
    };
  }
  return WriteSyntheticFolder(*config, options);
}

}  // namespace
}  // namespace ultraspeed::worker

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("writes a checkpoint folder with random contents");
  absl::ParseCommandLine(argc, argv);
  const absl::Status status = ultraspeed::worker::Write();
  if (status.ok()) return 0;
  std::fprintf(stderr, "ultraspeed-synthetic: %s\n", std::string(status.message()).c_str());
  return 1;
}
