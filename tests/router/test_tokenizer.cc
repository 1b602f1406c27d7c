#include "tests/router/test_tokenizer.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>

namespace ultraspeed::router {
namespace {

void AppendUtf8(uint32_t c, std::string* text) {
  const auto put = [&](uint32_t byte) { text->push_back(static_cast<char>(byte)); };
  if (c < 0x80) return put(c);
  if (c < 0x800) {
    put(0xC0 | c >> 6);
  } else {
    if (c < 0x10000) {
      put(0xE0 | c >> 12);
    } else {
      put(0xF0 | c >> 18);
      put(0x80 | (c >> 12 & 0x3F));
    }
    put(0x80 | (c >> 6 & 0x3F));
  }
  put(0x80 | (c & 0x3F));
}

}  // namespace

std::string ReadTestFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path << " (tests run from the repository root)";
  return std::string(std::istreambuf_iterator<char>(file), {});
}

const Tokenizer& TestTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer = [] {
    auto created = Tokenizer::Create(ReadTestFile(std::string(kFixtures) + "tokenizer.json"));
    if (!created.ok()) {
      ADD_FAILURE() << created.status();
      std::abort();
    }
    return *std::move(created);
  }();
  return *tokenizer;
}

std::string RandomText(std::mt19937_64& random, int characters_max) {
  struct Range {
    uint32_t low, high;
  };
  static constexpr Range kRanges[] = {
      {0x20, 0x7E},     {0x61, 0x7A},     {0x09, 0x0D},       {0x00, 0x1F},
      {0x80, 0x17F},    {0x300, 0x36F},   {0x370, 0x52F},     {0x900, 0x97F},
      {0xF71, 0xF84},   {0x1100, 0x11FF}, {0x2000, 0x206F},   {0x3040, 0x30FF},
      {0x4E00, 0x9FFF}, {0xAC00, 0xD7A3}, {0x1F300, 0x1F6FF}, {0x10000, 0x10FFFF}};
  std::string text;
  for (int n = static_cast<int>(random() % static_cast<uint64_t>(characters_max + 1)); n > 0; --n) {
    const Range range = kRanges[random() % std::size(kRanges)];
    AppendUtf8(range.low + static_cast<uint32_t>(random() % (range.high - range.low + 1)), &text);
  }
  return text;
}

uint64_t TestSeed() {
  const char* seed = std::getenv("ULTRASPEED_TEST_SEED");
  return seed == nullptr ? 20260923 : std::strtoull(seed, nullptr, 10);
}

}  // namespace ultraspeed::router
