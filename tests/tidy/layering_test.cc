// The house rules that a machine can check: which folder may include which, line length, leftovers,
// file sizes.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

const std::vector<std::string> kCodeFolders = {"common", "kernels", "worker", "router",
                                               "client", "bench",   "tests"};

// The arrows of docs/ARCHITECTURE.md.
const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"kernels", {"kernels"}},
    {"common", {"common", "proto"}},
    {"worker", {"worker", "kernels", "common", "proto"}},
    {"router", {"router", "common", "proto"}},
    {"client", {"client", "common", "proto"}},
    {"bench", {"bench", "client", "router", "worker", "kernels", "common", "proto"}},
    {"tests", {"tests", "bench", "client", "router", "worker", "kernels", "common", "proto"}},
};

// What must build without gRPC, protobuf and the logger: a GPU machine may have none.
const std::vector<std::string> kGrpcFree = {"router/byte_pair_encoder.",
                                            "router/chat_template.",
                                            "router/detokenizer.",
                                            "router/json_text.",
                                            "router/partial_match.",
                                            "router/stop_matcher.",
                                            "router/text_splitter.",
                                            "router/tokenizer.",
                                            "router/tool_call",
                                            "router/unicode.",
                                            "bench/held_out.",
                                            "common/grammar/",
                                            "kernels/",
                                            "worker/model/",
                                            "worker/cpu/",
                                            "worker/cuda/",
                                            "worker/engine.",
                                            "worker/scheduler.",
                                            "worker/kv_cache.",
                                            "worker/rank_threads.",
                                            "worker/request.",
                                            "worker/calibration.",
                                            "worker/executor.h",
                                            "worker/batch.h",
                                            "worker/speculation.",
                                            "worker/node_plan.",
                                            "worker/synthetic_main."};

struct SourceFile {
  std::string path;
  std::vector<std::string> lines;
};

bool IsSource(const fs::path& path) {
  static const std::set<std::string> kExtensions = {".h", ".cc", ".cu", ".cuh"};
  return kExtensions.count(path.extension().string()) > 0;
}

std::vector<SourceFile> Sources() {
  std::vector<SourceFile> files;
  for (const std::string& folder : kCodeFolders) {
    if (!fs::exists(folder)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      if (!entry.is_regular_file() || !IsSource(entry.path())) continue;
      SourceFile file{entry.path().generic_string(), {}};
      std::ifstream in(entry.path());
      for (std::string line; std::getline(in, line);) file.lines.push_back(line);
      files.push_back(std::move(file));
    }
  }
  return files;
}

// "worker/engine.h" of `#include "worker/engine.h"`, else empty.
std::string QuotedInclude(const std::string& line) {
  const std::string prefix = "#include \"";
  if (line.rfind(prefix, 0) != 0) return "";
  return line.substr(prefix.size(), line.find('"', prefix.size()) - prefix.size());
}

std::string FolderOf(const std::string& include) {
  if (include.find(".pb.h") != std::string::npos) return "proto";
  return include.substr(0, include.find('/'));
}

TEST(Layering, EveryIncludePointsAlongTheArrows) {
  for (const SourceFile& file : Sources()) {
    const std::set<std::string>& allowed = kMayInclude.at(FolderOf(file.path));
    for (size_t i = 0; i < file.lines.size(); ++i) {
      const std::string include = QuotedInclude(file.lines[i]);
      if (include.empty()) continue;
      const std::string folder = FolderOf(include);
      const bool ours =
          folder == "proto" || std::count(kCodeFolders.begin(), kCodeFolders.end(), folder) > 0;
      if (ours) {
        EXPECT_TRUE(allowed.count(folder)) << file.path << ":" << i + 1 << " includes " << include;
      }
    }
  }
}

TEST(Layering, EngineAndKernelsKnowNothingOfGrpc) {
  for (const SourceFile& file : Sources()) {
    const bool grpc_free =
        std::any_of(kGrpcFree.begin(), kGrpcFree.end(),
                    [&](const std::string& p) { return file.path.rfind(p, 0) == 0; });
    if (!grpc_free) continue;
    for (const std::string& line : file.lines) {
      if (line.rfind("#include", 0) != 0) continue;
      for (const char* banned : {"grpc", ".pb.h", "spdlog", "prometheus"}) {
        EXPECT_EQ(line.find(banned), std::string::npos) << file.path << ": " << line;
      }
    }
  }
}

TEST(Layering, SourcesIncludeTheirOwnHeaderFirst) {
  for (const SourceFile& file : Sources()) {
    const fs::path path(file.path);
    const std::string header = fs::path(path).replace_extension(".h").generic_string();
    if (path.extension() != ".cc" || !fs::exists(header)) continue;
    const auto first =
        std::find_if(file.lines.begin(), file.lines.end(),
                     [](const std::string& line) { return line.rfind("#include", 0) == 0; });
    ASSERT_NE(first, file.lines.end()) << file.path;
    EXPECT_EQ(QuotedInclude(*first), header) << file.path;
  }
}

TEST(Layering, NothingIncludesAMain) {
  for (const SourceFile& file : Sources()) {
    for (const std::string& line : file.lines) {
      EXPECT_EQ(QuotedInclude(line).find("main.cc"), std::string::npos) << file.path;
    }
  }
}

TEST(House, LinesAndLeftovers) {
  // Spelled in halves so that this file passes its own test.
  const std::vector<std::string> banned = {std::string("TO") + "DO", std::string("FIX") + "ME",
                                           std::string("XX") + "X:"};
  for (const SourceFile& file : Sources()) {
    for (size_t i = 0; i < file.lines.size(); ++i) {
      const std::string& line = file.lines[i];
      // clang-format keeps code within 100 columns; the rest is for strings that it cannot break.
      const bool is_test = file.path.rfind("tests/", 0) == 0;
      EXPECT_LE(line.size(), is_test ? 160u : 120u) << file.path << ":" << i + 1;
      EXPECT_EQ(line.find('\t'), std::string::npos) << file.path << ":" << i + 1 << " has a tab";
      for (const std::string& word : banned) {
        EXPECT_EQ(line.find(word), std::string::npos) << file.path << ":" << i + 1;
      }
    }
    EXPECT_LE(file.lines.size(), 900u) << file.path << " is too long to read";
  }
}

TEST(House, HeadersAreGuardedByPragmaOnce) {
  for (const SourceFile& file : Sources()) {
    const bool is_fragment = file.path.find(".inc.h") != std::string::npos;  // included many times
    if (fs::path(file.path).extension() != ".h" || is_fragment) continue;
    EXPECT_TRUE(std::count(file.lines.begin(), file.lines.end(), "#pragma once") == 1) << file.path;
  }
}

TEST(House, BundledModelStaysSmall) {
  uintmax_t total = 0;
  for (const auto& entry : fs::recursive_directory_iterator("models")) {
    if (!entry.is_regular_file()) continue;
    EXPECT_LE(entry.file_size(), 16u << 20) << entry.path();
    total += entry.file_size();
  }
  EXPECT_GT(total, 1u << 20) << "models/tiny-mimo is missing";
  EXPECT_LE(total, 48u << 20);
}

}  // namespace
