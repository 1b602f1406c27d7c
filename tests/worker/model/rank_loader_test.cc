// One rank's part: what it reads is its cut of every tensor and nothing else, and parts put
// together are the whole.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <latch>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/temporary_folder.h"
#include "tests/worker/model/damaged_files.h"
#include "worker/model/checkpoint.h"
#include "worker/model/shared_reads.h"
#include "worker/model/tensor_reader.h"
#include "worker/model/weights_loader.h"

namespace ultraspeed::worker {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class RankLoaderTest : public testing::Test {
 protected:
  RankLoaderTest()
      : checkpoint_(MakeSyntheticCheckpoint(kDividingShape)), config_(ConfigOf(kDividingShape)) {
    checkpoint_.Write(folder_.path());
  }

  std::unique_ptr<Checkpoint> Open() const {
    auto opened = Checkpoint::Open(
        folder_.path(),
        {.single_files = {"model.safetensors"}, .optional_prefix = "", .skip_prefix = ""});
    EXPECT_TRUE(opened.ok()) << opened.status();
    return *std::move(opened);
  }

  SyntheticCheckpoint checkpoint_;
  ModelConfig config_;
  TemporaryFolder folder_;
};

// The stored bytes of a part, cut by hand: row after row, column after column.
std::string Cut(const SyntheticTensor& tensor, bool columns, const Rank& rank) {
  const auto rows = static_cast<size_t>(tensor.shape[0]);
  const size_t row_bytes = tensor.bytes.size() / rows;
  const auto count = static_cast<size_t>(rank.count), index = static_cast<size_t>(rank.index);
  if (!columns)
    return tensor.bytes.substr(index * rows / count * row_bytes, rows / count * row_bytes);
  std::string out;
  for (size_t row = 0; row < rows; ++row)
    out += tensor.bytes.substr(row * row_bytes + index * row_bytes / count, row_bytes / count);
  return out;
}

std::string Text(const void* data, size_t bytes) { return {static_cast<const char*>(data), bytes}; }

TEST_F(RankLoaderTest, EveryFormIsCutWhereThePlanSays) {
  const std::string p = "model.layers.1.", expert = p + "mlp.experts.3.";
  for (const int count : {2, 4, 8}) {
    for (int index = 0; index < count; ++index) {
      SCOPED_TRACE(absl::StrCat("rank ", index, " of ", count));
      const Rank rank = {.index = index, .count = count};
      const auto cut = [&](const std::string& name, bool columns) {
        return Cut(checkpoint_.target.at(name), columns, rank);
      };
      const std::unique_ptr<Checkpoint> checkpoint = Open();
      TensorReader read(*checkpoint, rank);
      const int width = 256 / count;

      // MXFP4: rows of gate, columns of down, and their scales with them.
      const StoredMlp mlp =
          read.Mlp(kernels::WeightFormat::kMxfp4, expert, width, kDividingShape.hidden);
      ASSERT_TRUE(read.status().ok()) << read.status();
      const auto hidden = static_cast<size_t>(kDividingShape.hidden);
      const size_t codes = hidden * static_cast<size_t>(width) / 2, scales = codes / 16;
      EXPECT_EQ(Text(mlp.gate.view().codes, codes), cut(expert + "gate_proj.weight", false));
      EXPECT_EQ(Text(mlp.gate.view().scales_e8m0, scales),
                cut(expert + "gate_proj.weight_scale", false));
      EXPECT_EQ(Text(mlp.down.view().codes, codes), cut(expert + "down_proj.weight", true));
      EXPECT_EQ(Text(mlp.down.view().scales_e8m0, scales),
                cut(expert + "down_proj.weight_scale", true));

      // FP8 by blocks of 128.
      const StoredMlp dense = read.Mlp(kernels::WeightFormat::kFp8Block128, "model.layers.0.mlp.",
                                       1024 / count, kDividingShape.hidden);
      ASSERT_TRUE(read.status().ok()) << read.status();
      const size_t dense_codes = hidden * 1024 / static_cast<size_t>(count);
      EXPECT_EQ(Text(dense.up.view().codes, dense_codes),
                cut("model.layers.0.mlp.up_proj.weight", false));
      EXPECT_EQ(Text(dense.down.view().codes, dense_codes),
                cut("model.layers.0.mlp.down_proj.weight", true));
      EXPECT_EQ(Text(dense.down.view().scales_f32, sizeof(float) * 8 / static_cast<size_t>(count)),
                cut("model.layers.0.mlp.down_proj.weight_scale_inv", true));

      // BF16: rows, columns, vectors; what is whole on every rank.
      const StoredMatrix output =
          read.Bf16Matrix(p + "self_attn.o_proj.weight", kDividingShape.hidden, 16 * 32 / count);
      EXPECT_EQ(Text(output.view().codes, hidden * 512 * 2 / static_cast<size_t>(count)),
                cut(p + "self_attn.o_proj.weight", true));
      const auto embedding =
          read.Bf16("model.embed_tokens.weight", 128 / count, kDividingShape.hidden);
      EXPECT_EQ(Text(embedding.data(), embedding.size() * 2),
                cut("model.embed_tokens.weight", false));
      const auto sinks = read.Bf16AsFloat(p + "self_attn.attention_sink_bias", 16 / count);
      ASSERT_EQ(sinks.size(), static_cast<size_t>(16 / count));
      const auto router =
          read.Router(p + "mlp.gate.weight", kDividingShape.num_experts, kDividingShape.hidden);
      EXPECT_EQ(Text(router.data(), router.size() * 4),
                checkpoint_.target.at(p + "mlp.gate.weight").bytes);
      ASSERT_TRUE(read.status().ok()) << read.status();
    }
  }
}

// Shard r of the fused projection has 3 heads of 64 and one of 32: 224 rows, two blocks. A rank
// takes whole shards with their own scale rows; several are padded to whole blocks, one is not.
TEST_F(RankLoaderTest, FusedShardsKeepTheirOwnScaleRows) {
  const std::string name = "model.layers.2.self_attn.qkv_proj.weight";
  constexpr size_t kRows = 224, kPadded = 256, kHidden = 64;
  const SyntheticTensor& codes = checkpoint_.target.at(name);
  const SyntheticTensor& scales = checkpoint_.target.at(name + "_scale_inv");
  ASSERT_EQ(codes.shape, (std::vector<int64_t>{8 * 224, 64}));
  ASSERT_EQ(scales.shape, (std::vector<int64_t>{8 * 2, 1}));
  for (const int count : {2, 8}) {
    for (int index = 0; index < count; ++index) {
      const std::unique_ptr<Checkpoint> checkpoint = Open();
      TensorReader read(*checkpoint, {.index = index, .count = count});
      const int groups = 8 / count;
      const StoredMatrix part = read.GroupedFp8Matrix(name, groups, kRows, kHidden);
      ASSERT_TRUE(read.status().ok()) << read.status();
      const size_t stride = groups > 1 ? kPadded : kRows;
      ASSERT_EQ(part.view().num_rows, groups * static_cast<int>(stride));
      for (int group = 0; group < groups; ++group) {
        const auto shard = static_cast<size_t>(index * groups + group);
        const auto* at = static_cast<const uint8_t*>(part.view().codes) +
                         static_cast<size_t>(group) * stride * kHidden;
        EXPECT_EQ(Text(at, kRows * kHidden),
                  codes.bytes.substr(shard * kRows * kHidden, kRows * kHidden));
        EXPECT_EQ(Text(part.view().scales_f32 + group * 2, 8), scales.bytes.substr(shard * 8, 8));
      }
    }
  }
}

TEST_F(RankLoaderTest, EveryRankLoadsAndReportsItsOwnBytes) {
  for (const int count : {1, 2, 4, 8}) {
    const int64_t bytes = PlanSharding(config_, count)->total().gpu_bytes;
    for (int index = 0; index < count; ++index) {
      int64_t last = 0, calls = 0;
      const absl::StatusOr<ModelWeights> weights = LoadModelWeights(
          folder_.path(), config_,
          {.rank = {.index = index, .count = count}, .progress = [&](int64_t done, int64_t total) {
             EXPECT_GE(done, last);
             EXPECT_EQ(total, bytes);
             last = done;
             ++calls;
           }});
      ASSERT_TRUE(weights.ok()) << weights.status();
      EXPECT_EQ(last, bytes);
      EXPECT_GE(calls, 6);  // layers of both
      EXPECT_EQ(weights->target.layers[1].experts[0].gate.num_rows(), 256 / count);
      EXPECT_EQ(weights->target.head.num_rows(), 128 / count);
      EXPECT_EQ(weights->drafter.layers[0].qkv.num_rows(), (8 + 2 * 8) * 32 / count);
      EXPECT_EQ(weights->drafter.context_kv.num_rows(), 2 * 2 * 8 * 32 / count);
    }
  }
}

TEST_F(RankLoaderTest, ABadValueIsTheConcernOfItsRankAndNamedByItsPlaceInTheTensor) {
  const std::string name = "model.layers.2.mlp.experts.1.down_proj.weight_scale";
  SyntheticTensor& scales = checkpoint_.target.at(name);
  ASSERT_EQ(scales.shape, (std::vector<int64_t>{64, 8}));
  scales.bytes[5 * 8 + 6] = '\xff';  // row 5, column 6: rank 3 of 4
  checkpoint_.Write(folder_.path());
  for (int index = 0; index < 4; ++index) {
    const absl::Status status =
        LoadModelWeights(folder_.path(), config_, {.rank = {.index = index, .count = 4}}).status();
    if (index != 3) {
      EXPECT_TRUE(status.ok()) << status;
      continue;
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("tensor " + name), HasSubstr("element 46 is 255")));
  }
}

TEST_F(RankLoaderTest, AShapeThatDoesNotDivideIsRefusedBeforeAnythingIsRead) {
  ModelConfig config = config_;
  config.num_kv_heads = 4;
  const absl::Status status =
      LoadModelWeights("no/such/folder", config, {.rank = {.index = 0, .count = 8}}).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("num_key_value_heads: is 4; 8 GPUs"));
}

TEST_F(RankLoaderTest, DamageIsRefusedByEveryRankWithTheWholeTensorsShape) {
  const std::string name = "model.layers.1.self_attn.o_proj.weight";
  checkpoint_.target.at(name).shape = {512, 64};
  checkpoint_.Write(folder_.path());
  for (int index = 0; index < 8; ++index) {
    const absl::Status status =
        LoadModelWeights(folder_.path(), config_, {.rank = {.index = index, .count = 8}}).status();
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(name + ": is BF16 [512, 64]; the config calls for BF16 [64, 512]"));
  }
}

// All tensors of a layer as a rank holds them, one after the other.
std::string Bytes(const ModelWeights& weights) {
  std::string out;
  const auto matrix = [&](const kernels::PackedMatrix& m) { out += Text(m.data(), m.bytes()); };
  const auto floats = [&](const std::vector<float>& v) { out += Text(v.data(), v.size() * 4); };
  out += Text(weights.target.embedding.data(), weights.target.embedding.size() * 2);
  matrix(weights.target.head);
  for (const TargetLayer& layer : weights.target.layers) {
    for (const auto* values : {&layer.input_norm, &layer.post_attention_norm, &layer.sinks,
                               &layer.router, &layer.router_bias}) {
      floats(*values);
    }
    for (const auto* m :
         {&layer.qkv, &layer.output, &layer.mlp.gate, &layer.mlp.up, &layer.mlp.down}) {
      if (m->num_rows() > 0) matrix(*m);
    }
    for (const kernels::MlpWeights& expert : layer.experts) {
      for (const auto* m : {&expert.gate, &expert.up, &expert.down}) matrix(*m);
    }
  }
  for (const DrafterLayer& layer : weights.drafter.layers) {
    for (const auto* m :
         {&layer.qkv, &layer.output, &layer.mlp.gate, &layer.mlp.up, &layer.mlp.down}) {
      matrix(*m);
    }
  }
  matrix(weights.drafter.context_kv);
  return out;
}

TEST_F(RankLoaderTest, StreamedAloneOrSharedTheBytesAreThoseOfTheMappedFiles) {
  for (const int count : {1, 4}) {
    std::vector<std::string> mapped;
    for (int index = 0; index < count; ++index) {
      const Rank rank = {.index = index, .count = count};
      const auto weights =
          LoadModelWeights(folder_.path(), config_, {.rank = rank, .reads = {.threads = 0}});
      ASSERT_TRUE(weights.ok()) << weights.status();
      mapped.push_back(Bytes(*weights));
    }
    for (const DirectReads direct : {DirectReads::kNever, DirectReads::kAlways}) {
      const ReadOptions options = {.threads = 3, .direct = direct, .window_bytes = 1 << 16};
      SharedReads shared(count, options);
      std::vector<std::thread> threads;
      for (int index = 0; index < count; ++index) {
        threads.emplace_back([&, index] {
          const Rank rank = {.index = index, .count = count};
          const auto alone =
              LoadModelWeights(folder_.path(), config_, {.rank = rank, .reads = options});
          ASSERT_TRUE(alone.ok()) << alone.status();
          EXPECT_TRUE(Bytes(*alone) == mapped[static_cast<size_t>(index)]) << index;
          const auto together =
              LoadModelWeights(folder_.path(), config_, {.rank = rank, .shared = &shared});
          ASSERT_TRUE(together.ok()) << together.status();
          EXPECT_TRUE(Bytes(*together) == mapped[static_cast<size_t>(index)]) << index;
        });
      }
      for (std::thread& thread : threads) thread.join();
      // Every byte once, also those that all ranks need.
      int64_t bytes = 0;
      for (const TensorSpec& tensor : TargetTensors(config_)) bytes += tensor.bytes();
      for (const TensorSpec& tensor : DrafterTensors(config_.drafter)) bytes += tensor.bytes();
      EXPECT_EQ(shared.statistics().bytes, bytes);
    }
  }
}

// As ranks do whose weights come from a cache.
TEST_F(RankLoaderTest, RanksThatLeaveBeforeOrDuringTheLoadHoldNobodyUp) {
  SharedReads shared(4, {.threads = 2, .window_bytes = 1 << 14});
  shared.Leave(0);
  std::vector<std::thread> threads;
  for (const int index : {1, 3}) {
    threads.emplace_back([&, index] {
      const Rank rank = {.index = index, .count = 4};
      const auto mapped =
          LoadModelWeights(folder_.path(), config_, {.rank = rank, .reads = {.threads = 0}});
      const auto weights =
          LoadModelWeights(folder_.path(), config_, {.rank = rank, .shared = &shared});
      ASSERT_TRUE(weights.ok()) << weights.status();
      EXPECT_TRUE(Bytes(*weights) == Bytes(*mapped));
    });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  shared.Leave(2);
  for (std::thread& thread : threads) thread.join();
}

TEST_F(RankLoaderTest, OneRanksErrorEndsTheOthersLoadsWithIt) {
  const std::string name = "model.layers.1.mlp.experts.1.down_proj.weight_scale";
  checkpoint_.target.at(name).bytes[6] = '\xff';  // rank 3 of 4
  checkpoint_.Write(folder_.path());
  SharedReads shared(4, {.threads = 2, .window_bytes = 1 << 14});
  std::latch failed(1);  // rank 3; until then the others stop at the first bytes that they have
  std::vector<absl::Status> statuses(4);
  std::vector<std::thread> threads;
  for (int index = 0; index < 4; ++index) {
    threads.emplace_back([&, index] {
      LoadOptions options = {.rank = {.index = index, .count = 4}, .shared = &shared};
      if (index < 3) options.progress = [&](int64_t, int64_t) { failed.wait(); };
      statuses[static_cast<size_t>(index)] =
          LoadModelWeights(folder_.path(), config_, options).status();
      if (index == 3) failed.count_down();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : statuses) {
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(folder_.path() + ": tensor " + name + ": element 6 is 255"));
    EXPECT_EQ(std::string(status.message()).rfind(folder_.path()), 0u) << status;
  }
}

// As when a rank has come to the drafter while another fails on the target.
TEST(InFolderTest, AnErrorNamesItsPlaceOnce) {
  const auto message = [](const char* model, const char* folder, const char* error) {
    return std::string(InFolder(model, folder, absl::InvalidArgumentError(error)).message());
  };
  EXPECT_EQ(message("/m", "/m/dflash", "tensor a: is 1"), "/m/dflash: tensor a: is 1");
  EXPECT_EQ(message("/m", "/m/dflash", "/m: tensor a: is 1"), "/m: tensor a: is 1");
  EXPECT_EQ(message("/m", "/m/dflash", "/m/dflash: tensor a: is 1"), "/m/dflash: tensor a: is 1");
  EXPECT_EQ(message("/m", "/m", "/m/b.safetensors: cannot be read"),
            "/m/b.safetensors: cannot be read");
  EXPECT_EQ(message("t", "t", "tensor a: is 1"), "t: tensor a: is 1");
  EXPECT_TRUE(InFolder("/m", "/m", absl::OkStatus()).ok());
}

}  // namespace
}  // namespace ultraspeed::worker
