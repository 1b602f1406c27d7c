// Every tensor damaged in turn, every published variant of the layout, and files damaged after they
// were written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <limits>

#include "absl/strings/str_cat.h"
#include "tests/temporary_folder.h"
#include "tests/worker/model/damaged_files.h"

namespace ultraspeed::worker {
namespace {

namespace json = boost::json;
using testing::AllOf;
using testing::HasSubstr;

const SyntheticCheckpoint& Good() {
  static const SyntheticCheckpoint checkpoint = [] {
    SyntheticCheckpoint made = MakeSyntheticCheckpoint({});
    made.write_index = true;
    return made;
  }();
  return checkpoint;
}

constexpr char kQkv[] = "model.layers.1.self_attn.qkv_proj.weight";
constexpr char kExpert[] = "model.layers.2.mlp.experts.3.down_proj.weight";
constexpr char kDense[] = "model.layers.0.mlp.up_proj.weight";

void ExpectRefused(const absl::Status& status, const std::string& name, const std::string& what) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(name), HasSubstr(what)));
}

absl::StatusOr<ModelWeights> Load(const SyntheticCheckpoint& checkpoint) {
  const TemporaryFolder folder;
  checkpoint.Write(folder.path());
  const absl::StatusOr<ModelConfig> config = LoadModelConfig(folder.path());
  if (!config.ok()) return config.status();
  return LoadModelWeights(folder.path(), *config, {});
}

template <typename T>
void Overwrite(SyntheticTensor& tensor, size_t index, T value) {
  ASSERT_LE((index + 1) * sizeof(T), tensor.bytes.size());
  std::memcpy(tensor.bytes.data() + index * sizeof(T), &value, sizeof(T));
}

TEST(LoaderTest, ValuesArriveUnchanged) {
  SyntheticCheckpoint checkpoint = Good();
  Overwrite(Tensor(checkpoint, "model.embed_tokens.weight"), 65, kernels::ToBf16(-3.5f));
  Overwrite(Tensor(checkpoint, "model.norm.weight"), 63, kernels::ToBf16(0.75f));
  Overwrite(Tensor(checkpoint, "model.layers.1.mlp.gate.weight"), 64 * 5 - 1, 1.2345678f);
  Overwrite(Tensor(checkpoint, "model.layers.1.self_attn.attention_sink_bias"), 2,
            kernels::ToBf16(9.0f));
  const absl::StatusOr<ModelWeights> weights = Load(checkpoint);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->target.embedding[65], kernels::ToBf16(-3.5f));
  EXPECT_EQ(weights->target.final_norm[63], 0.75f);
  EXPECT_EQ(weights->target.layers[1].router[64 * 5 - 1], 1.2345678f);
  EXPECT_EQ(weights->target.layers[1].sinks[2], 9.0f);
}

void Rename(std::map<std::string, SyntheticTensor>& tensors, const std::string& from,
            const std::string& to) {
  auto node = tensors.extract(from);
  ASSERT_FALSE(node.empty()) << from;
  node.key() = to;
  tensors.insert(std::move(node));
}

// The expert of FP8 releases: codes of any value but NaN, one scale per block.
void MakeFp8(SyntheticCheckpoint& checkpoint, const std::string& name) {
  SyntheticTensor& codes = checkpoint.target.at(name);
  codes = {
      "F8_E4M3", {codes.shape[0], codes.shape[1] * 2}, std::string(codes.bytes.size() * 2, '\x38')};
  const float scale = 0.1f;
  checkpoint.target.erase(name + "_scale");
  checkpoint.target[name + "_scale_inv"] = {
      "F32", {1, 1}, std::string(reinterpret_cast<const char*>(&scale), 4)};
}

TEST(LoaderTest, EveryPublishedVariantLoads) {
  using Checkpoint = SyntheticCheckpoint;
  const std::pair<const char*, void (*)(Checkpoint&)> kVariants[] = {
      {"one file", [](Checkpoint& c) { c.write_index = false; }},
      {"MTP layers, skipped",
       [](Checkpoint& c) {
         c.target["model.mtp.layers.0.enorm.weight"] = c.target["model.norm.weight"];
       }},
      {"no drafter", [](Checkpoint& c) { c.drafter.clear(); }},
      {"no sinks",
       [](Checkpoint& c) {
         c.config["add_swa_attention_sink_bias"] = false;
         for (const char* layer : {"1", "2"}) {
           c.target.erase(absl::StrCat("model.layers.", layer, ".self_attn.attention_sink_bias"));
         }
       }},
      {"prefixed drafter",
       [](Checkpoint& c) {
         for (const auto& [name, tensor] : Good().drafter) Rename(c.drafter, name, "model." + name);
       }},
      {"BF16 router",
       [](Checkpoint& c) {
         SyntheticTensor& router = c.target.at("model.layers.2.mlp.gate.weight");
         router = {"BF16", router.shape, std::string(router.bytes.size() / 2, '\x3d')};
       }},
      {"FP8 experts", [](Checkpoint& c) {
         c.config["quantization_config"].as_object().erase("store_dtype");
         c.config["quantization_config"].as_object().erase("mxfp4_block_size");
         for (int layer = 1; layer < 4; ++layer) {
           for (int expert = 0; expert < 8; ++expert) {
             for (const char* part : {"gate", "up", "down"}) {
               MakeFp8(c, absl::StrCat("model.layers.", layer, ".mlp.experts.", expert, ".", part,
                                       "_proj.weight"));
             }
           }
         }
       }}};
  for (const auto& [name, change] : kVariants) {
    SCOPED_TRACE(name);
    SyntheticCheckpoint checkpoint = Good();
    change(checkpoint);
    const absl::Status status = LoadStatus(checkpoint);
    EXPECT_TRUE(status.ok()) << status;
  }
  for (const SyntheticShape& shape :
       {SyntheticShape{.num_kv_heads = 1}, SyntheticShape{.hidden = 160, .dense_ffn_width = 288}}) {
    const absl::Status status = LoadStatus(MakeSyntheticCheckpoint(shape));
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST(LoaderTest, TheDrafterMayLieInTheFileNameOfTheRelease) {
  const TemporaryFolder folder;
  Good().Write(folder.path());
  std::filesystem::rename(folder.path() + "/dflash/model.safetensors",
                          folder.path() + "/dflash/dflash_draft_model.safetensors");
  EXPECT_TRUE(LoadStatus(folder.path()).ok());
}

TEST(LoaderTest, EveryWrongDtypeIsNamed) {
  for (const auto tensors : {&SyntheticCheckpoint::target, &SyntheticCheckpoint::drafter}) {
    for (const auto& [name, tensor] : Good().*tensors) {
      SyntheticCheckpoint checkpoint = Good();
      std::string& dtype = Tensor(checkpoint, name).dtype;
      // Another type of the same width, so that only the type is wrong.
      dtype = dtype == "BF16" ? "F16" : dtype == "F32" ? "I32" : dtype == "U8" ? "I8" : "F8_E5M2";
      ExpectRefused(LoadStatus(checkpoint), "tensor " + name, dtype);
    }
  }
}

TEST(LoaderTest, EveryWrongShapeIsNamed) {
  for (const auto tensors : {&SyntheticCheckpoint::target, &SyntheticCheckpoint::drafter}) {
    for (const auto& [name, tensor] : Good().*tensors) {
      SyntheticCheckpoint checkpoint = Good();
      Tensor(checkpoint, name).shape.push_back(1);
      ExpectRefused(LoadStatus(checkpoint), "tensor " + name, "the config calls for");
    }
  }
  SyntheticCheckpoint transposed = Good();
  std::swap(Tensor(transposed, kQkv).shape[0], Tensor(transposed, kQkv).shape[1]);
  ExpectRefused(LoadStatus(transposed), kQkv, "F8_E4M3 [64, 448]");
}

TEST(LoaderTest, ValuesThatAreNotNumbersAreNamedWithTheirIndex) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const auto expect = [&](const std::string& name, size_t index, auto value) {
    SyntheticCheckpoint checkpoint = Good();
    Overwrite(Tensor(checkpoint, name), index, value);
    ExpectRefused(LoadStatus(checkpoint), "tensor " + name, absl::StrCat("element ", index, " "));
  };
  for (const uint8_t code : {0x7F, 0xFF}) {
    expect(kQkv, 448 * 64 - 1, code);
    expect(kDense, 5, code);
  }
  expect(std::string(kExpert) + "_scale", 127, uint8_t{255});
  for (const float value : {nan, infinity, -infinity}) {
    expect(std::string(kQkv) + "_scale_inv", 1, value);
    expect(std::string(kDense) + "_scale_inv", 0, value);
    expect("model.layers.1.mlp.gate.weight", 7, value);
    expect("model.layers.1.mlp.gate.e_score_correction_bias", 4, value);
    for (const char* name :
         {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight",
          "model.layers.0.input_layernorm.weight", "fc.weight", "hidden_norm.weight",
          "model.layers.1.self_attn.attention_sink_bias", "norm.weight",
          "model.layers.2.self_attn.o_proj.weight", "layers.1.self_attn.k_proj.weight",
          "layers.0.self_attn.q_norm.weight", "layers.1.mlp.down_proj.weight"}) {
      expect(name, 3, kernels::ToBf16(value));
    }
  }
  // Every MXFP4 code is a number, and 254 is the largest scale.
  SyntheticCheckpoint checkpoint = Good();
  Overwrite(Tensor(checkpoint, kExpert), 0, uint8_t{0xFF});
  Overwrite(Tensor(checkpoint, std::string(kExpert) + "_scale"), 0, uint8_t{254});
  EXPECT_TRUE(LoadStatus(checkpoint).ok());
}

TEST(LoaderTest, FilesCutShortAreNamed) {
  for (const char* file : {"/model-2.safetensors", "/dflash/model.safetensors"}) {
    const TemporaryFolder folder;
    Good().Write(folder.path());
    const std::string bytes = ReadBytes(folder.path() + file);
    for (const size_t kept :
         {size_t{0}, size_t{7}, size_t{8}, size_t{100}, bytes.size() / 2, bytes.size() - 1}) {
      WriteBytes(folder.path() + file, bytes.substr(0, kept));
      ExpectRefused(LoadStatus(folder.path()), file, "");
    }
  }
}

TEST(LoaderTest, OffsetsThatOverlapOrLeaveTheFileAreNamed) {
  const std::string file = "/model-1.safetensors";
  const TemporaryFolder folder;
  Good().Write(folder.path());
  const std::string good = ReadBytes(folder.path() + file);
  const auto edit = [&](const std::function<void(int64_t&, int64_t&)>& change) {
    WriteBytes(folder.path() + file, good);
    std::string name;
    EditHeader(folder.path() + file, [&](json::object& header) {
      for (auto& entry : header) {
        if (entry.key() == "__metadata__") continue;
        json::array& offsets = entry.value().as_object()["data_offsets"].as_array();
        if (offsets[0].as_int64() == 0) continue;  // the first has none before it
        name = std::string(entry.key());
        change(offsets[0].as_int64(), offsets[1].as_int64());
        break;
      }
    });
    return name;
  };
  std::string name = edit([](int64_t& begin, int64_t& end) { --begin, --end; });
  ExpectRefused(LoadStatus(folder.path()), file, "overlaps tensor");
  name = edit([](int64_t& begin, int64_t& end) { begin += 1 << 30, end += 1 << 30; });
  ExpectRefused(LoadStatus(folder.path()), "tensor " + name, "data_offsets");
  name = edit([](int64_t&, int64_t& end) { ++end; });
  ExpectRefused(LoadStatus(folder.path()), "tensor " + name, "bytes of data");
}

TEST(LoaderTest, MissingFilesAreNamed) {
  for (const char* file : {"/model-2.safetensors", "/tokenizer.json", "/dflash/model.safetensors",
                           "/dflash/mask_embedding.pt"}) {
    const TemporaryFolder folder;
    Good().Write(folder.path());
    std::filesystem::remove(folder.path() + file);
    const absl::Status status = LoadStatus(folder.path());
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(folder.path()));
  }
}

}  // namespace
}  // namespace ultraspeed::worker
