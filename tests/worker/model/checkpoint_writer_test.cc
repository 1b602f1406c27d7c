// Folders that the generator writes: the published file split, loadable whole and in parts, and
// refused by name after every kind of damage to the files themselves.
#include "worker/model/checkpoint_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "absl/strings/str_cat.h"
#include "tests/temporary_folder.h"
#include "tests/worker/model/damaged_files.h"
#include "worker/model/served_shape.h"

namespace ultraspeed::worker {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using testing::AllOf;
using testing::HasSubstr;

// The release's structure at a small width: 8 fused shards, 5 taps, sinks on sliding layers.
ModelConfig SmallRelease() {
  ModelConfig config = MimoV25ProShape();
  config.hidden = 64;
  config.num_q_heads = 16;
  config.qk_head_dim = 96;
  config.v_head_dim = 32;
  config.rotary_dims = 32;
  config.dense_ffn_width = 1024;
  config.expert_ffn_width = 256;
  config.num_experts = 10;
  config.experts_per_token = 4;
  config.vocabulary = 256;
  config.context_tokens = 4096;
  config.eos_token_ids = {253, 254};
  config.drafter.hidden = 64;
  config.drafter.num_q_heads = 16;
  config.drafter.head_dim = 32;
  config.drafter.rotary_dims = 16;
  config.drafter.ffn_width = 256;
  config.drafter.num_layers = 2;
  config.drafter.mask_token_id = 255;
  return config;
}

ModelConfig FiveLayers() { return *Shortened(SmallRelease(), 5, 10); }

class CheckpointWriterTest : public testing::Test {
 protected:
  void Write(const ModelConfig& config = FiveLayers(), uint64_t seed = 1) {
    const absl::Status status = WriteSyntheticFolder(config, {.folder = path(), .seed = seed});
    ASSERT_TRUE(status.ok()) << status;
  }
  std::string path() const { return folder_.path() + "/model"; }
  std::string File(const char* name) const { return path() + "/" + name; }

  TemporaryFolder folder_;
};

TEST_F(CheckpointWriterTest, TheConfigComesBackAsItWas) {
  Write();
  const ModelConfig written = FiveLayers();
  const absl::StatusOr<ModelConfig> read = LoadModelConfig(path());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(TargetConfigJson(*read), TargetConfigJson(written));
  EXPECT_EQ(DrafterConfigJson(*read), DrafterConfigJson(written));
  EXPECT_EQ(read->rotary_dims, written.rotary_dims);
  EXPECT_EQ(read->attention, written.attention);
  EXPECT_EQ(read->eos_token_ids, written.eos_token_ids);
}

TEST_F(CheckpointWriterTest, TheServedShapesConfigComesBackToo) {
  fs::create_directories(path() + "/dflash");
  const ModelConfig served = MimoV25ProShape();
  WriteBytes(File("config.json"), json::serialize(TargetConfigJson(served)));
  WriteBytes(File("generation_config.json"), json::serialize(GenerationJson(served)));
  WriteBytes(File("dflash/config.json"), json::serialize(DrafterConfigJson(served)));
  const absl::StatusOr<ModelConfig> read = LoadModelConfig(path());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->rotary_dims, 64);
  EXPECT_EQ(PlanSharding(*read, 8)->ToString(), PlanSharding(served, 8)->ToString());
}

TEST_F(CheckpointWriterTest, FilesAreSplitAsPublished) {
  Write();
  std::set<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(path())) {
    if (entry.is_regular_file()) names.insert(fs::relative(entry.path(), path()).string());
  }
  std::set<std::string> expected = {"config.json",
                                    "generation_config.json",
                                    "tokenizer.json",
                                    "model.safetensors.index.json",
                                    "model_mtp.safetensors",
                                    "dflash/config.json",
                                    "dflash/mask_embedding.pt",
                                    "dflash/model.safetensors.index.json",
                                    "dflash/dflash_draft_model-00001-of-00002.safetensors",
                                    "dflash/dflash_draft_model-00002-of-00002.safetensors",
                                    "model_pp0_ep0_shard0.safetensors"};
  for (int layer = 1; layer < 5; ++layer) {
    for (const int part : {0, 1})
      expected.insert(absl::StrCat("model_pp", layer, "_ep", part, "_shard0.safetensors"));
  }
  EXPECT_EQ(names, expected);
  // The whole release comes to 1 + 69 x 2 files and the prediction heads'.
  EXPECT_EQ(TargetFiles(MimoV25ProShape(), kPublishedPredictionHeads).size(), 140u);
}

TEST_F(CheckpointWriterTest, LoadsWholeAndAsAnyNumberOfRanks) {
  Write();
  EXPECT_TRUE(LoadStatus(path()).ok()) << LoadStatus(path());
  const ModelConfig config = *LoadModelConfig(path());
  for (const int count : {2, 4, 8}) {
    for (int index = 0; index < count; ++index) {
      const absl::Status status =
          LoadModelWeights(path(), config, {.rank = {.index = index, .count = count}}).status();
      EXPECT_TRUE(status.ok()) << status;
    }
  }
}

TEST_F(CheckpointWriterTest, AsManyFilesAndLayersAsTheReleaseLoad) {
  ModelConfig config = *Shortened(SmallRelease(), 70, 4);
  EXPECT_EQ(config.drafter.target_layer_ids, (std::vector<int>{0, 15, 31, 47, 69}));
  Write(config);
  size_t num_files = 0;
  for (const auto& entry : fs::directory_iterator(path()))
    num_files += entry.path().extension() == ".safetensors" ? 1 : 0;
  EXPECT_EQ(num_files, 140u);
  EXPECT_TRUE(LoadStatus(path()).ok()) << LoadStatus(path());
  EXPECT_TRUE(LoadModelWeights(path(), *LoadModelConfig(path()), {.rank = {5, 8}}).ok());
}

TEST_F(CheckpointWriterTest, AnyNumberOfLayersAndExperts) {
  for (const int layers : {1, 2, 7}) {
    const TemporaryFolder folder;
    const absl::StatusOr<ModelConfig> config = Shortened(SmallRelease(), layers, 4);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->drafter.target_layer_ids.back(), layers - 1);
    EXPECT_EQ(config->drafter.target_layer_ids.size(), static_cast<size_t>(std::min(layers, 5)));
    ASSERT_TRUE(WriteSyntheticFolder(*config, {.folder = folder.path()}).ok());
    EXPECT_TRUE(LoadStatus(folder.path()).ok()) << LoadStatus(folder.path());
  }
  EXPECT_THAT(std::string(Shortened(SmallRelease(), 71, 10).status().message()),
              HasSubstr("layers: is 71; must be from 1 to 70"));
  EXPECT_THAT(std::string(Shortened(SmallRelease(), 0, 10).status().message()),
              HasSubstr("layers: is 0"));
  EXPECT_THAT(std::string(Shortened(SmallRelease(), 5, 3).status().message()),
              HasSubstr("experts: is 3; must be from 4 to 10"));
}

TEST_F(CheckpointWriterTest, TheSameSeedWritesTheSameBytes) {
  Write();
  const std::string first = ReadBytes(File("model_pp3_ep1_shard0.safetensors"));
  fs::remove_all(path());
  Write();
  EXPECT_EQ(ReadBytes(File("model_pp3_ep1_shard0.safetensors")), first);
  fs::remove_all(path());
  Write(FiveLayers(), /*seed=*/2);
  EXPECT_NE(ReadBytes(File("model_pp3_ep1_shard0.safetensors")), first);
}

TEST_F(CheckpointWriterTest, AFolderWithFilesIsLeftAlone) {
  fs::create_directories(path());
  WriteBytes(File("precious"), "x");
  EXPECT_THAT(std::string(WriteSyntheticFolder(FiveLayers(), {.folder = path()}).message()),
              HasSubstr("must be a new or an empty folder"));
  EXPECT_EQ(ReadBytes(File("precious")), "x");
}

TEST_F(CheckpointWriterTest, AFullDiskIsRefusedBeforeWriting) {
  const absl::Status status =
      WriteSyntheticFolder(MimoV25ProShape(), {.folder = path(), .num_prediction_heads = 0});
  if (fs::space(folder_.path()).available > uintmax_t{560} << 30) GTEST_SKIP() << "a large disk";
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("the checkpoint takes 567.36 GB"));
  EXPECT_TRUE(fs::is_empty(path()));
}

// ---- Damage. Whole or as a rank, a folder is refused with file and tensor.
void ExpectRefused(const std::string& folder, const std::string& name, const std::string& what) {
  const ModelConfig config = *LoadModelConfig(folder);
  for (const Rank rank : {Rank{0, 1}, Rank{1, 2}, Rank{7, 8}}) {
    const absl::Status status = LoadModelWeights(folder, config, {.rank = rank}).status();
    EXPECT_FALSE(status.ok()) << "rank " << rank.index << " of " << rank.count;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(name), HasSubstr(what)));
  }
}

TEST_F(CheckpointWriterTest, FilesCutShortAreNamed) {
  Write();
  for (const char* name : {"model_pp2_ep1_shard0.safetensors", "model_mtp.safetensors",
                           "dflash/dflash_draft_model-00002-of-00002.safetensors"}) {
    const std::string good = ReadBytes(File(name));
    for (const size_t kept : {size_t{0}, size_t{7}, size_t{9}, good.size() / 2, good.size() - 1}) {
      WriteBytes(File(name), good.substr(0, kept));
      ExpectRefused(path(), name, "");
    }
    WriteBytes(File(name), good);
  }
  EXPECT_TRUE(LoadStatus(path()).ok());
}

TEST_F(CheckpointWriterTest, HostileHeaderLengthsAreNamed) {
  Write();
  const char* const name = "model_pp1_ep0_shard0.safetensors";
  const std::string good = ReadBytes(File(name));
  for (const uint64_t length :
       {uint64_t{0}, uint64_t{1}, uint64_t{good.size() - 8}, uint64_t{good.size() - 7},
        uint64_t{1} << 40, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{7}}) {
    std::string bytes = good;
    std::memcpy(bytes.data(), &length, sizeof(length));
    WriteBytes(File(name), bytes);
    ExpectRefused(path(), name, "header");
  }
}

TEST_F(CheckpointWriterTest, TensorsMissingFromFileOrIndexAreNamed) {
  Write();
  const char* const file = "model_pp4_ep1_shard0.safetensors";
  const std::string name = "model.layers.4.mlp.experts.9.up_proj.weight_scale";
  const std::string good_file = ReadBytes(File(file));
  const std::string index_path = File("model.safetensors.index.json");
  const std::string good_index = ReadBytes(index_path);
  json::object index = json::parse(good_index).as_object();

  EditHeader(File(file), [&](json::object& header) { header.erase(name); });
  ExpectRefused(path(), name, "is in the index, not in the file");
  index["weight_map"].as_object().erase(name);
  WriteBytes(index_path, json::serialize(index));
  ExpectRefused(path(), name, "is missing; the config calls for U8 [256, 2]");
  WriteBytes(File(file), good_file);
  ExpectRefused(path(), name, "the index does not place it here");

  index = json::parse(good_index).as_object();
  index["weight_map"].as_object()["model.layers.4.mlp.unheard_of"] = file;
  WriteBytes(index_path, json::serialize(index));
  ExpectRefused(path(), "model.layers.4.mlp.unheard_of", "is in the index, not in the file");
  EditHeader(File(file), [&](json::object& header) {
    header["model.layers.4.mlp.unheard_of"] = {
        {"dtype", "U8"}, {"shape", {0}}, {"data_offsets", {0, 0}}};
  });
  ExpectRefused(path(), "model.layers.4.mlp.unheard_of", "the config calls for no such tensor");
}

TEST_F(CheckpointWriterTest, IndexesThatPointElsewhereAreNamed) {
  Write();
  const std::string index_path = File("model.safetensors.index.json");
  const json::object good = json::parse(ReadBytes(index_path)).as_object();
  for (const char* file : {"../secret.safetensors", "/etc/passwd", "a/b.safetensors", "",
                           ".hidden.safetensors", "model.bin"}) {
    json::object index = good;
    index["weight_map"].as_object()["model.norm.weight"] = file;
    WriteBytes(index_path, json::serialize(index));
    ExpectRefused(path(), "model.norm.weight", "must be the name of a .safetensors file");
  }
  json::object index = good;
  index["weight_map"].as_object()["model.norm.weight"] = "model_pp1_ep0_shard0.safetensors";
  WriteBytes(index_path, json::serialize(index));
  ExpectRefused(path(), "model.norm.weight", "the index does not place it here");
  WriteBytes(index_path, json::serialize(good));
  fs::remove(File("model_pp3_ep1_shard0.safetensors"));
  ExpectRefused(path(), "model_pp3_ep1_shard0.safetensors", "No such file");
}

// Any of the 255s of a scale tensor is found by the rank that holds it, and by one rank alone.
TEST_F(CheckpointWriterTest, ANanScaleIsNamedWithItsTensor) {
  Write();
  const char* const file = "model_pp2_ep0_shard0.safetensors";
  const std::string name = "model.layers.2.mlp.experts.2.gate_proj.weight_scale";
  std::string bytes = ReadBytes(File(file));
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  const json::value header = json::parse(bytes.substr(8, header_bytes));
  const int64_t begin = header.at(name).at("data_offsets").at(0).as_int64();
  bytes[8 + header_bytes + static_cast<size_t>(begin) + 511] = '\xff';  // the last of [256, 2]
  WriteBytes(File(file), bytes);
  const ModelConfig config = *LoadModelConfig(path());
  for (int index = 0; index < 8; ++index) {
    const absl::Status status =
        LoadModelWeights(path(), config, {.rank = {.index = index, .count = 8}}).status();
    EXPECT_EQ(status.ok(), index != 7) << status;
  }
  EXPECT_THAT(std::string(LoadStatus(path()).message()),
              AllOf(HasSubstr("tensor " + name), HasSubstr("element 511 is 255, which is NaN")));
}

TEST_F(CheckpointWriterTest, PredictionHeadsAreSkippedByNameHoweverManyThereAre) {
  for (const int heads : {0, 1, 3}) {
    const TemporaryFolder folder;
    ASSERT_TRUE(
        WriteSyntheticFolder(FiveLayers(), {.folder = folder.path(), .num_prediction_heads = heads})
            .ok());
    EXPECT_EQ(fs::exists(folder.path() + "/model_mtp.safetensors"), heads > 0);
    EXPECT_TRUE(LoadStatus(folder.path()).ok()) << LoadStatus(folder.path());
  }
}

}  // namespace
}  // namespace ultraspeed::worker
