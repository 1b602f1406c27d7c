// Bounded random mutation of everything that the loader parses: whatever it reads, it answers with
// a status and stays inside its buffers. Run with --gtest_random_seed=N for another series; the
// seed is printed.
#include <gtest/gtest.h>

#include <cstdio>
#include <random>

#include "tests/temporary_folder.h"
#include "tests/worker/model/damaged_files.h"
#include "worker/model/mask_embedding.h"
#include "worker/model/safetensors.h"
#include "worker/model/stored_zip.h"

namespace ultraspeed::worker {
namespace {

namespace json = boost::json;

class LoaderFuzzTest : public testing::Test {
 protected:
  LoaderFuzzTest() : seed_(static_cast<uint32_t>(testing::UnitTest::GetInstance()->random_seed())) {
    random_.seed(seed_);
    std::printf("seed %u\n", seed_);
    RecordProperty("seed", static_cast<int>(seed_));
  }

  size_t Below(size_t bound) { return static_cast<size_t>(random_() % bound); }

  // One to four edits inside [begin, end): a byte changed, a bit flipped, a run removed, repeated
  // or filled.
  std::string Mutate(std::string bytes, size_t begin, size_t end) {
    for (size_t edits = 1 + Below(4); edits > 0 && end > begin; --edits) {
      const size_t at = begin + Below(end - begin);
      const size_t run = 1 + Below(std::min<size_t>(end - at, 16));
      switch (Below(6)) {
        case 0:
          bytes[at] = static_cast<char>(Below(256));
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << Below(8)));
          break;
        case 2:
          bytes.erase(at, run), end -= run;
          break;
        case 3:
          bytes.insert(at, bytes.substr(at, run)), end += run;
          break;
        case 4:
          bytes.replace(at, run, std::string(run, Below(2) == 0 ? '\xff' : '\0'));
          break;
        default:
          bytes[at] = "0123456789-[]{}\",:eE."[Below(22)];
      }
    }
    return bytes;
  }

  const SyntheticCheckpoint checkpoint_ = MakeSyntheticCheckpoint({});
  TemporaryFolder folder_;
  const uint32_t seed_;
  std::mt19937 random_;
};

// Sums every byte that a tensor says it has: under a sanitizer this proves the bounds.
uint64_t Touch(const SafetensorsFile& file) {
  uint64_t sum = 0;
  for (const TensorView& tensor : file.tensors()) {
    for (size_t i = 0; i < tensor.bytes; ++i) sum += tensor.data[i];
  }
  return sum;
}

TEST_F(LoaderFuzzTest, SafetensorsHeaders) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a.weight":{"dtype":"BF16","shape":[4,8],"data_offsets":[0,64]},)"
      R"("a.scale":{"dtype":"F32","shape":[4],"data_offsets":[64,80]},)"
      R"("b":{"dtype":"U8","shape":[16],"data_offsets":[80,96]}})";
  const std::string good = WithHeader(header, std::string(96, '\5'));
  const std::string path = folder_.path() + "/x.safetensors";
  int opened = 0;
  for (int i = 0; i < 4000; ++i) {
    const std::string mutated = Mutate(header, 0, header.size());
    // Either a file whose length fits the mutated header, or one whose first 8 bytes are mutated as
    // well.
    WriteBytes(path, i % 2 == 0 ? WithHeader(mutated, std::string(96, '\5'))
                                : Mutate(good, 0, 8 + header.size()));
    const auto file = SafetensorsFile::Open(path);
    if (!file.ok()) continue;
    ++opened;
    for (const TensorView& tensor : (*file)->tensors()) ASSERT_LE(tensor.bytes, 96u);
    Touch(**file);
  }
  EXPECT_GT(opened, 0);     // some edits leave a sound file
  EXPECT_LT(opened, 3000);  // most do not
}

// One rank's part of a file whose header lies: cut rows and columns, and the pages that are read
// ahead, stay inside the file.
TEST_F(LoaderFuzzTest, PartsOfTensors) {
  const SyntheticCheckpoint good = MakeSyntheticCheckpoint({.num_layers = 2,
                                                            .dense_ffn_width = 512,
                                                            .num_experts = 3,
                                                            .drafter_layers = 1,
                                                            .drafter_ffn_width = 128});
  good.Write(folder_.path());
  const ModelConfig config = *LoadModelConfig(folder_.path());
  int loaded = 0;
  for (int i = 0; i < 300; ++i) {
    const std::string path =
        folder_.path() + (i % 3 == 0 ? "/dflash/model.safetensors" : "/model.safetensors");
    const std::string bytes = ReadBytes(path);
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
    const std::string header = bytes.substr(8, header_bytes);
    WriteBytes(path, WithHeader(Mutate(header, 0, header.size()), bytes.substr(8 + header_bytes)));
    const Rank rank = {.index = i % 2, .count = 2};
    if (LoadModelWeights(folder_.path(), config, {.rank = rank}).ok()) ++loaded;
    WriteBytes(path, bytes);
  }
  EXPECT_LT(loaded, 250);
  EXPECT_TRUE(LoadModelWeights(folder_.path(), config, {.rank = {1, 2}}).ok());
}

TEST_F(LoaderFuzzTest, Pickles) {
  const std::string& good = checkpoint_.mask_pickle;
  constexpr int kHidden = 64;
  const std::string path = folder_.path() + "/mask_embedding.pt";
  int opened = 0;
  for (int i = 0; i < 4000; ++i) {
    WriteBytes(path, MaskArchive(Mutate(good, 0, good.size()), checkpoint_.mask_storage));
    const auto read = ReadMaskEmbedding(path, kHidden);
    if (!read.ok()) continue;
    ++opened;
    ASSERT_EQ(read->embedding.size(), static_cast<size_t>(kHidden));
  }
  EXPECT_LT(opened, 2000);
}

TEST_F(LoaderFuzzTest, Archives) {
  const std::string good = MaskArchive(checkpoint_.mask_pickle, checkpoint_.mask_storage);
  const size_t directory = good.find("PK\x01\x02");
  for (int i = 0; i < 4000; ++i) {
    const size_t begin = i % 2 == 0 ? directory : 0;
    const std::string mutated = Mutate(good, begin, good.size());
    const auto entries = ReadStoredZip("x", mutated);
    if (!entries.ok()) continue;
    for (const auto& [name, content] : *entries) {
      ASSERT_GE(content.data(), mutated.data());
      ASSERT_LE(content.data() + content.size(), mutated.data() + mutated.size());
    }
  }
}

// A random value of a kind that configs do not expect in that place.
json::value HostileValue(std::mt19937& random) {
  switch (random() % 12) {
    case 0:
      return nullptr;
    case 1:
      return true;
    case 2:
      return -1;
    case 3:
      return 0;
    case 4:
      return 1;
    case 5:
      return static_cast<int64_t>(random() % 100000);
    case 6:
      return INT64_MIN;
    case 7:
      return UINT64_MAX;
    case 8:
      return 1e308;
    case 9:
      return "text";
    case 10:
      return json::array(random() % 5, json::value(random() % 4));
    default:
      return json::object{{"a", 1}};
  }
}

TEST_F(LoaderFuzzTest, Configs) {
  const SyntheticCheckpoint good =
      MakeSyntheticCheckpoint({.num_layers = 2, .num_experts = 3, .drafter_layers = 1});
  good.Write(folder_.path());
  const auto mutate = [&](json::object object) {
    for (size_t edits = 1 + Below(3); edits > 0; --edits) {
      json::object* owner = &object;
      auto entry = owner->begin() + static_cast<ptrdiff_t>(Below(owner->size()));
      if (entry->value().is_object() && !entry->value().get_object().empty() && Below(2) == 0) {
        owner = &entry->value().get_object();
        entry = owner->begin() + static_cast<ptrdiff_t>(Below(owner->size()));
      }
      entry->value() = HostileValue(random_);
    }
    return json::serialize(object);
  };
  int loaded = 0;
  for (int i = 0; i < 600; ++i) {
    const bool drafter = i % 3 == 0;
    const std::string file = folder_.path() + (drafter ? "/dflash/config.json" : "/config.json");
    const std::string text = json::serialize(drafter ? good.drafter_config : good.config);
    WriteBytes(file, i % 2 == 0 ? mutate(drafter ? good.drafter_config : good.config)
                                : Mutate(text, 0, text.size()));
    if (LoadStatus(folder_.path()).ok()) ++loaded;
    WriteBytes(file, text);
  }
  EXPECT_LT(loaded, 500);
}

TEST_F(LoaderFuzzTest, IndexesAndTokenizers) {
  SyntheticCheckpoint good =
      MakeSyntheticCheckpoint({.num_layers = 2, .num_experts = 3, .drafter_layers = 0});
  good.write_index = true;
  good.Write(folder_.path());
  for (const char* name :
       {"/model.safetensors.index.json", "/tokenizer.json", "/generation_config.json"}) {
    const std::string text = ReadBytes(folder_.path() + name);
    for (int i = 0; i < 300; ++i) {
      WriteBytes(folder_.path() + name, Mutate(text, 0, text.size()));
      LoadStatus(folder_.path()).IgnoreError();
    }
    WriteBytes(folder_.path() + name, text);
    ASSERT_TRUE(LoadStatus(folder_.path()).ok());
  }
}

}  // namespace
}  // namespace ultraspeed::worker
