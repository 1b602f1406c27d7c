// Checkpoint folders against lists of sha256 sums.
#include "worker/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/temporary_folder.h"
#include "tests/worker/model/damaged_files.h"
#include "worker/sha256.h"

namespace ultraspeed::worker {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

constexpr char kEmptySum[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

class ManifestTest : public testing::Test {
 protected:
  void SetUp() override {
    SyntheticCheckpoint checkpoint = MakeSyntheticCheckpoint({.num_layers = 2, .num_experts = 3});
    checkpoint.write_index = true;
    checkpoint.Write(folder());
    for (const auto& entry : fs::recursive_directory_iterator(folder())) {
      if (entry.is_regular_file()) {
        const std::string name = fs::relative(entry.path(), folder()).string();
        sums_[name] = Sha256Hex(ReadBytes(entry.path().string()));
      }
    }
    ASSERT_EQ(sums_.size(), 9u);  // 4 texts and indexes, 2 files of the target, 3 of the drafter
  }

  std::string folder() const { return folder_.path(); }

  absl::Status Check(const std::function<void(int64_t, int64_t)>& progress = {}) {
    std::string text;
    for (const auto& [name, sum] : sums_) absl::StrAppend(&text, sum, "  ", name, "\n");
    const std::string path = manifest_folder_.path() + "/SHA256SUMS";
    WriteBytes(path, text);
    return CheckManifest(folder(), path, /*num_threads=*/3, progress);
  }

  TemporaryFolder folder_, manifest_folder_;
  std::map<std::string, std::string> sums_;
};

TEST_F(ManifestTest, AWholeFolderPassesAndReportsEveryByte) {
  int64_t last = 0, total = 0, bytes = 0;
  for (const auto& [name, sum] : sums_)
    bytes += static_cast<int64_t>(fs::file_size(folder() + "/" + name));
  const absl::Status status = Check([&](int64_t done, int64_t all) {
    EXPECT_GE(done, last);
    last = done;
    total = all;
  });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(last, bytes);
  EXPECT_EQ(total, bytes);
}

TEST_F(ManifestTest, AChangedByteIsNamedWithItsFile) {
  for (const char* name : {"model-2.safetensors", "dflash/mask_embedding.pt", "config.json"}) {
    const std::string path = folder() + "/" + name, good = ReadBytes(path);
    std::string bad = good;
    bad.back() = static_cast<char>(bad.back() ^ 1);
    WriteBytes(path, bad);
    const absl::Status status = Check();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(path), HasSubstr("the manifest says " + sums_.at(name))));
    WriteBytes(path, good);
  }
}

TEST_F(ManifestTest, FilesOnOneSideOnlyAreNamed) {
  WriteBytes(folder() + "/dflash/extra.safetensors", "x");
  EXPECT_THAT(std::string(Check().message()),
              HasSubstr("dflash/extra.safetensors: is not in the manifest"));
  fs::remove(folder() + "/dflash/extra.safetensors");
  WriteBytes(folder() + "/notes.txt", "not read by loading");
  EXPECT_TRUE(Check().ok());
  sums_["model-3.safetensors"] = kEmptySum;
  const absl::Status status = Check();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model-3.safetensors: is in the manifest"));
  EXPECT_EQ(CheckManifest(folder(), folder() + "/none", 1, {}).code(), absl::StatusCode::kNotFound);
}

TEST(ParseManifestTest, TakesWhatSha256sumWrites) {
  const std::string upper = "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855";
  const auto sums = ParseManifest(
      "sums", absl::StrCat(kEmptySum, "  a.json\n", upper, " *./dflash/b c.pt\r\n\n"));
  ASSERT_TRUE(sums.ok()) << sums.status();
  EXPECT_EQ(*sums, (std::map<std::string, std::string>{{"a.json", kEmptySum},
                                                       {"dflash/b c.pt", kEmptySum}}));
}

TEST(ParseManifestTest, NamesTheLineThatIsWrong) {
  const std::string good = absl::StrCat(kEmptySum, "  a\n");
  const auto refusal = [&](const std::string& line) {
    return std::string(ParseManifest("sums", good + line).status().message());
  };
  const std::string sum = kEmptySum;
  EXPECT_THAT(refusal(sum), HasSubstr("sums: line 2: must be 64 hexadecimal digits, two spaces"));
  EXPECT_THAT(refusal(sum.substr(1) + "  bb"), HasSubstr("line 2"));
  EXPECT_THAT(refusal("g" + sum.substr(1) + "  b"), HasSubstr("64 hexadecimal digits"));
  EXPECT_THAT(refusal(sum + "  a"), HasSubstr("names a for the second time"));
  for (const char* path : {"/etc/passwd", "../x", "a/../b", "a//b", "./"})
    EXPECT_THAT(refusal(sum + "  " + path), HasSubstr("a path inside the folder")) << path;
  EXPECT_THAT(std::string(ParseManifest("sums", "\n\n").status().message()),
              HasSubstr("names no file"));
}

TEST(ParseManifestTest, SurvivesAnything) {
  std::mt19937 random(static_cast<uint32_t>(testing::UnitTest::GetInstance()->random_seed()));
  const std::string good = absl::StrCat(kEmptySum, "  a\n", kEmptySum, "  dflash/b\n");
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text = good;
    for (int edits = 1 + static_cast<int>(random() % 3); edits > 0; --edits)
      text[random() % text.size()] = static_cast<char>(random());
    const auto sums = ParseManifest("sums", text);
    if (!sums.ok()) continue;
    ++accepted;
    for (const auto& [path, sum] : *sums) {
      EXPECT_EQ(sum.size(), 64u);
      EXPECT_NE(path.front(), '/');
      EXPECT_EQ(path.find(".."), std::string::npos);
    }
  }
  EXPECT_LT(accepted, 15000);
}

}  // namespace
}  // namespace ultraspeed::worker
