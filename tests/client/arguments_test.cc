#include "client/arguments.h"

#include <gtest/gtest.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "tests/temporary_folder.h"

namespace ultraspeed::client {
namespace {

absl::StatusOr<v1::GenerateOptions> OptionsOf(std::vector<std::string> words) {
  words.insert(words.begin(), "ultraspeed");
  std::vector<const char*> pointers;
  for (const std::string& word : words) pointers.push_back(word.c_str());
  const auto arguments = ParseArguments(static_cast<int>(pointers.size()), pointers.data());
  if (!arguments.ok()) return arguments.status();
  return (*arguments)->options;
}

class OutputFormatFlags : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = absl::StrCat(folder_.path(), "/", name);
    std::ofstream(path) << text;
    return path;
  }
  const TemporaryFolder folder_;
};

TEST_F(OutputFormatFlags, BecomeTheOutputFormat) {
  const std::string schema = "{\"type\": \"object\"}\n";
  const std::string path = Write("schema.json", schema);
  for (const char* command : {"generate", "chat"}) {
    EXPECT_FALSE(OptionsOf({command, "--json", "hi"})->has_output_format());
    EXPECT_TRUE(OptionsOf({command, "--json-object", "hi"})->output_format().json_object());
    EXPECT_EQ(OptionsOf({command, "--json-schema", path, "hi"})->output_format().json_schema(),
              schema);
  }
  EXPECT_FALSE(OptionsOf({"tokenize", "--json-object", "hi"}).ok());
}

TEST_F(OutputFormatFlags, WhatIsNoSchemaFileIsNamed) {
  const auto error = [](std::vector<std::string> flags) {
    flags.insert(flags.begin(), "generate");
    return std::string(OptionsOf(std::move(flags)).status().message());
  };
  EXPECT_EQ(error({"--json-schema=/no/such/file"}), "--json-schema=/no/such/file: cannot open");
  const std::string folder = folder_.path();
  EXPECT_EQ(error({"--json-schema=" + folder}),
            absl::StrCat("--json-schema=", folder, ": cannot read"));
  const std::string empty = Write("empty", "");
  EXPECT_EQ(error({"--json-schema=" + empty}),
            absl::StrCat("--json-schema=", empty, ": the file is empty"));
  const std::string large = Write("large", std::string(limits::kSchemaBytesMax + 1, ' '));
  EXPECT_EQ(error({"--json-schema=" + large}),
            absl::StrCat("--json-schema=", large, ": larger than 131072 bytes"));
  EXPECT_EQ(error({"--json-object", "--json-schema=" + large}),
            "--json-object and --json-schema: only one of the two");
}

}  // namespace
}  // namespace ultraspeed::client
