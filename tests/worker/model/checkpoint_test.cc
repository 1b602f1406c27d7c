// A whole folder: every tensor must be there with its dtype and shape, none may be unknown, and no
// value may be NaN.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "tests/temporary_folder.h"
#include "tests/worker/model/synthetic_checkpoint.h"
#include "worker/model/safetensors.h"
#include "worker/model/weights.h"

namespace ultraspeed::worker {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string LoadMessage(const std::string& folder) {
  const absl::StatusOr<ModelConfig> config = LoadModelConfig(folder);
  if (!config.ok()) return std::string(config.status().message());
  const absl::StatusOr<ModelWeights> weights = LoadModelWeights(folder, *config, {});
  return weights.ok() ? "accepted" : std::string(weights.status().message());
}

std::string Refusal(const std::function<void(SyntheticCheckpoint&)>& damage) {
  TemporaryFolder folder;
  SyntheticCheckpoint checkpoint = MakeSyntheticCheckpoint({});
  damage(checkpoint);
  checkpoint.Write(folder.path());
  return LoadMessage(folder.path());
}

TEST(CheckpointTest, AWholeCheckpointLoads) {
  EXPECT_EQ(Refusal([](SyntheticCheckpoint&) {}), "accepted");
  EXPECT_EQ(Refusal([](SyntheticCheckpoint& c) { c.write_index = true; }), "accepted");
}

TEST(CheckpointTest, ShapesComeOutAsDeclared) {
  TemporaryFolder folder;
  MakeSyntheticCheckpoint({}).Write(folder.path());
  const ModelConfig config = *LoadModelConfig(folder.path());
  const ModelWeights weights = *LoadModelWeights(folder.path(), config, {});
  EXPECT_EQ(weights.target.embedding.size(), 128u * 64);
  ASSERT_EQ(weights.target.layers.size(), 4u);
  EXPECT_EQ(weights.target.layers[1].qkv.num_rows(),
            2 * 256);  // shards of 224 rows, padded to whole FP8 blocks
  EXPECT_EQ(QkvGroupRows(config), 256);
  EXPECT_EQ(weights.target.layers[1].experts.size(), 8u);
  EXPECT_EQ(weights.target.layers[1].experts[0].gate.format(), kernels::WeightFormat::kMxfp4);
  EXPECT_EQ(weights.target.layers[0].sinks.size(), 0u);
  EXPECT_EQ(weights.target.layers[1].sinks.size(), 4u);
  EXPECT_EQ(weights.target.layers[0].mlp.gate.num_rows(), 96);
  EXPECT_EQ(weights.drafter.layers[0].qkv.num_rows(), (4 + 2 * 2) * 32);
  EXPECT_EQ(weights.drafter.context_kv.num_rows(), 2 * 2 * 2 * 32);
  EXPECT_EQ(weights.drafter.mask_embedding.size(), 64u);
}

TEST(CheckpointTest, EveryMissingTensorIsNamed) {
  const SyntheticCheckpoint whole = MakeSyntheticCheckpoint(
      {.num_layers = 3, .num_experts = 3, .markov_rank = 32, .has_markov_gate = true});
  for (const bool drafter : {false, true}) {
    for (const auto& [name, tensor] : drafter ? whole.drafter : whole.target) {
      TemporaryFolder folder;
      SyntheticCheckpoint checkpoint = whole;
      (drafter ? checkpoint.drafter : checkpoint.target).erase(name);
      checkpoint.Write(folder.path());
      EXPECT_THAT(LoadMessage(folder.path()),
                  HasSubstr("tensor " + name + ": is missing; the config calls for " +
                            ShapeName(tensor.dtype, tensor.shape)));
    }
  }
}

TEST(CheckpointTest, WrongShapesAndDtypesAreNamed) {
  EXPECT_THAT(
      Refusal([](SyntheticCheckpoint& c) {
        c.target["lm_head.weight"].shape = {64, 128};
      }),
      HasSubstr("tensor lm_head.weight: is BF16 [64, 128]; the config calls for BF16 [128, 64]"));
  EXPECT_THAT(Refusal([](SyntheticCheckpoint& c) { c.target["model.norm.weight"].dtype = "F16"; }),
              HasSubstr("tensor model.norm.weight: is F16 [64]; the config calls for BF16 [64]"));
  EXPECT_THAT(Refusal([](SyntheticCheckpoint& c) {
                c.target["model.layers.1.mlp.experts.2.up_proj.weight_scale"].dtype = "I8";
              }),
              HasSubstr("model.layers.1.mlp.experts.2.up_proj.weight_scale: is I8 [64, 2]; the "
                        "config calls for U8 [64, 2]"));
  EXPECT_THAT(Refusal([](SyntheticCheckpoint& c) {
                auto& scale = c.target["model.layers.2.self_attn.qkv_proj.weight_scale_inv"];
                scale.shape = {2, 2};
              }),
              HasSubstr("model.layers.2.self_attn.qkv_proj.weight_scale_inv: is F32 [2, 2]; the "
                        "config calls for F32 [4, 1]"));
}

TEST(CheckpointTest, UnknownTensorsAreNamedExceptHeadsThatNobodyReads) {
  const SyntheticTensor extra{"U8", {1}, "x"};
  EXPECT_THAT(Refusal([&](SyntheticCheckpoint& c) { c.target["model.layers.9.surprise"] = extra; }),
              HasSubstr("tensor model.layers.9.surprise: the config calls for no such tensor"));
  EXPECT_THAT(Refusal([&](SyntheticCheckpoint& c) { c.drafter["lm_head.weight"] = extra; }),
              HasSubstr("tensor lm_head.weight: the config calls for no such tensor"));
  EXPECT_EQ(Refusal([&](SyntheticCheckpoint& c) {
              c.target["model.mtp.layers.0.enorm.weight"] = extra;
              c.drafter["confidence_head.proj.weight"] = extra;
            }),
            "accepted");
}

TEST(CheckpointTest, DrafterNamesMayHaveAPrefix) {
  const auto prefix = [](SyntheticCheckpoint& c) {
    std::map<std::string, SyntheticTensor> renamed;
    for (const auto& [name, tensor] : c.drafter) renamed["model." + name] = tensor;
    c.drafter = renamed;
  };
  EXPECT_EQ(Refusal(prefix), "accepted");
  EXPECT_THAT(Refusal([&](SyntheticCheckpoint& c) {
                const SyntheticTensor twice = c.drafter["norm.weight"];
                prefix(c);
                c.drafter["norm.weight"] = twice;
              }),
              HasSubstr("tensor norm.weight: appears twice"));
}

TEST(CheckpointTest, ARouterMayBeBf16) {
  EXPECT_EQ(Refusal([](SyntheticCheckpoint& c) {
              SyntheticTensor& router = c.target["model.layers.1.mlp.gate.weight"];
              router = {"BF16", router.shape, std::string(router.bytes.size() / 2, '\0')};
            }),
            "accepted");
}

TEST(CheckpointTest, ValuesThatAreNoNumbersAreNamed) {
  const auto with_byte = [](const std::string& name, size_t at, char value) {
    return Refusal([&](SyntheticCheckpoint& c) { c.target[name].bytes[at] = value; });
  };
  EXPECT_THAT(with_byte("model.layers.1.mlp.experts.0.gate_proj.weight_scale", 5, '\xff'),
              HasSubstr("tensor model.layers.1.mlp.experts.0.gate_proj.weight_scale: element 5 is "
                        "255, which is NaN in E8M0"));
  EXPECT_THAT(
      with_byte("model.layers.0.self_attn.qkv_proj.weight", 7, '\x7f'),
      HasSubstr("tensor model.layers.0.self_attn.qkv_proj.weight: element 7 is an FP8 NaN"));
  EXPECT_THAT(with_byte("model.layers.0.mlp.up_proj.weight", 0, '\xff'),
              HasSubstr("element 0 is an FP8 NaN"));
  EXPECT_THAT(Refusal([](SyntheticCheckpoint& c) {
                c.target["model.layers.0.mlp.up_proj.weight_scale_inv"].bytes.replace(
                    0, 4, "\x00\x00\xc0\x7f", 4);
              }),
              HasSubstr("model.layers.0.mlp.up_proj.weight_scale_inv: element 0 is not finite"));
  EXPECT_THAT(Refusal([](SyntheticCheckpoint& c) {
                c.target["lm_head.weight"].bytes.replace(4, 2, "\x80\x7f", 2);
              }),
              HasSubstr("tensor lm_head.weight: element 2 is not finite"));
  EXPECT_THAT(Refusal([](SyntheticCheckpoint& c) {
                c.drafter["fc.weight"].bytes.replace(0, 2, "\xff\xff", 2);
              }),
              HasSubstr("tensor fc.weight: element 0 is not finite"));
}

TEST(CheckpointTest, AnIndexMustAgreeWithItsFiles) {
  const auto refusal = [](const std::string& index,
                          const std::function<void(const std::string&)>& more = {}) {
    TemporaryFolder folder;
    SyntheticCheckpoint checkpoint = MakeSyntheticCheckpoint({});
    checkpoint.write_index = true;
    checkpoint.Write(folder.path());
    if (!index.empty()) WriteBytes(folder.path() + "/model.safetensors.index.json", index);
    if (more) more(folder.path());
    return LoadMessage(folder.path());
  };
  EXPECT_THAT(refusal("{}"), HasSubstr("weight_map: must be an object"));
  EXPECT_THAT(refusal(R"({"weight_map":{"a":7}})"), HasSubstr("tensor a: file 7 must be the name"));
  EXPECT_THAT(refusal(R"({"weight_map":{"a":"../x.safetensors"}})"),
              HasSubstr("must be the name of a .safetensors file in the same folder"));
  EXPECT_THAT(refusal(R"({"weight_map":{"a":"/etc/passwd"}})"), HasSubstr("must be the name"));
  EXPECT_THAT(refusal(R"({"weight_map":{"a":"none.safetensors"}})"),
              HasSubstr("none.safetensors: No such file"));
  EXPECT_THAT(refusal(R"({"weight_map":{"a":"model-1.safetensors"}})"),
              HasSubstr("the index does not place it here"));
  EXPECT_THAT(refusal("",
                      [](const std::string& folder) {
                        std::string index = R"({"weight_map":{"a":"model-1.safetensors"}})";
                        WriteBytes(folder + "/model-1.safetensors", SafetensorsBytes({}));
                        WriteBytes(folder + "/model.safetensors.index.json", index);
                      }),
              HasSubstr("tensor a: is in the index, not in the file"));
  EXPECT_THAT(refusal("",
                      [](const std::string& folder) {
                        std::filesystem::remove(folder + "/model.safetensors.index.json");
                      }),
              HasSubstr("has neither model.safetensors.index.json nor model.safetensors"));
}

TEST(CheckpointTest, TheMaskMustBeTheConfigs) {
  EXPECT_THAT(Refusal([](SyntheticCheckpoint& c) { c.mask_pickle = MaskPickle(7, 64); }),
              AllOf(HasSubstr("mask_embedding.pt: mask_token_id: is 7"),
                    HasSubstr("config.json says 119")));
}

}  // namespace
}  // namespace ultraspeed::worker
