#include "router/http/reasoning_splitter.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace ultraspeed::router {
namespace {

// However the text is cut into chunks.
std::pair<std::string, std::string> Split(const std::string& text, size_t chunk_bytes) {
  ReasoningSplitter splitter;
  std::pair<std::string, std::string> whole;
  const auto add = [&](const ReasoningSplitter::Parts& parts) {
    whole.first += parts.reasoning;
    whole.second += parts.content;
  };
  for (size_t i = 0; i < text.size(); i += chunk_bytes) {
    add(splitter.Append(text.substr(i, chunk_bytes)));
  }
  add(splitter.Finish());
  return whole;
}

TEST(ReasoningSplitter, SplitsWhateverTheChunks) {
  const struct {
    const char* text;
    const char* reasoning;
    const char* content;
  } kCases[] = {
      {"plain", "", "plain"},
      {"<think>a b</think>c", "a b", "c"},
      {"<think></think>c", "", "c"},
      {"<think>\na\n</think>\n\nc", "\na\n", "\n\nc"},          // nothing is trimmed
      {"<think>a < b </thin </think>c", "a < b </thin ", "c"},  // nearly the end
      {"<think>never ends", "never ends", ""},
      {"<think>cut </thi", "cut </thi", ""},
      {"<thin", "", "<thin"},
      {"<thinking>", "", "<thinking>"},
      {"a <think>b</think>", "", "a <think>b</think>"},  // not at the beginning
      {"<think>a</think>b<think>c</think>", "a", "b<think>c</think>"},
      {"", "", ""},
  };
  for (const auto& one : kCases) {
    for (size_t chunk_bytes = 1; chunk_bytes < 12; ++chunk_bytes) {
      const auto [reasoning, content] = Split(one.text, chunk_bytes);
      EXPECT_EQ(reasoning, one.reasoning) << one.text << " by " << chunk_bytes;
      EXPECT_EQ(content, one.content) << one.text << " by " << chunk_bytes;
    }
  }
}

TEST(ReasoningSplitter, HoldsBackNoMoreThanAMarker) {
  ReasoningSplitter splitter;
  EXPECT_EQ(splitter.Append("<think>abc</").reasoning, "abc");
  EXPECT_EQ(splitter.Append("x").reasoning, "</x");
}

}  // namespace
}  // namespace ultraspeed::router
