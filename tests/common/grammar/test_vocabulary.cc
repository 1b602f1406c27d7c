#include "tests/common/grammar/test_vocabulary.h"

#include <boost/json.hpp>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <sstream>

#include "common/byte_alphabet.h"
#include "common/check.h"

namespace ultraspeed::grammar {
namespace {

namespace json = boost::json;

constexpr int kNumLargeTokens = 151'936;

}  // namespace

const std::shared_ptr<const Vocabulary>& BundledVocabulary() {
  static const auto* const vocabulary = [] {
    std::ifstream file("models/tiny-mimo/tokenizer.json");
    std::stringstream text;
    text << file.rdbuf();
    const json::value tokenizer = json::parse(text.str());
    const json::object& tokens = tokenizer.at("model").at("vocab").as_object();
    const json::array& added = tokenizer.at("added_tokens").as_array();
    std::vector<std::string> bytes(tokens.size() + added.size());
    for (const auto& [token, id] : tokens)
      bytes.at(id.to_number<size_t>()) = BytesOfEntry({token.data(), token.size()}).value();
    int32_t end_token = -1;
    for (const json::value& token : added) {
      const auto id = token.at("id").to_number<int32_t>();
      if (token.at("content") == "<|im_end|>") end_token = id;
      if (!token.at("special").as_bool()) bytes.at(id) = token.at("content").as_string();
    }
    return new std::shared_ptr<const Vocabulary>(
        std::make_shared<Vocabulary>(std::move(bytes), std::vector<int32_t>{end_token}));
  }();
  return *vocabulary;
}

std::shared_ptr<const Vocabulary> LargeVocabulary() {
  std::mt19937 random(11);
  const auto pick = [&](int n) { return static_cast<int>(random() % n); };
  std::vector<std::string> tokens;
  std::set<std::string> known;
  const auto add = [&](const std::string& token) {
    if (known.insert(token).second) tokens.push_back(token);
  };
  for (int byte = 0; byte < 256; ++byte) add(std::string(1, static_cast<char>(byte)));
  for (int length = 2; length <= 96; ++length) {
    add(std::string(length, ' '));
    add("\n" + std::string(length, ' '));
    add(std::string(length / 8, '\t') + "\n");
  }
  const std::string kMarks = "\"\"\"{}[]()<>:;,.\\/'!?=+-*&|_#$%@^~`";
  const char* const kSyllables[] = {"an", "be", "ca",  "do", "er", "fi", "go", "he",
                                    "in", "ja", "ke",  "lo", "me", "no", "or", "pro",
                                    "qu", "re", "str", "th", "un", "ve", "wa", "ing"};
  while (tokens.size() + 1 < kNumLargeTokens) {
    std::string token;
    const int kind = pick(100);
    if (kind < 70) {  // a word, mostly with its space
      if (pick(2) == 0) token = " ";
      for (int n = 1 + pick(4); n > 0; --n) token += kSyllables[pick(24)];
      if (pick(5) == 0) token[token.size() / 2] = static_cast<char>('A' + pick(26));
    } else if (kind < 76) {  // marks, some before a word
      if (pick(3) == 0) token = " ";
      for (int n = 1 + pick(4); n > 0; --n) token += kMarks[pick(static_cast<int>(kMarks.size()))];
      if (pick(4) == 0) token += kSyllables[pick(24)];
      if (pick(5) == 0) token += "\n";
    } else if (kind < 78) {
      for (int n = 1 + pick(3); n > 0; --n) token += static_cast<char>('0' + pick(10));
    } else {  // characters of three bytes, some cut; of two
      const bool is_wide = pick(3) > 0;
      for (int n = 1 + pick(3); n > 0; --n) {
        if (is_wide) {
          token += static_cast<char>(0xE4 + pick(6));
          token += static_cast<char>(0x80 + pick(64));
          token += static_cast<char>(0x80 + pick(64));
        } else {
          token += static_cast<char>(0xC3 + pick(20));
          token += static_cast<char>(0x80 + pick(64));
        }
      }
      if (is_wide && pick(20) == 0) token.pop_back();
    }
    add(token);
  }
  tokens.emplace_back();
  return std::make_shared<Vocabulary>(std::move(tokens), std::vector<int32_t>{kNumLargeTokens - 1});
}

std::vector<int32_t> Tokenize(const Vocabulary& vocabulary, const std::string& text) {
  std::map<std::string, int32_t> ids;
  for (int32_t id = 0; id < vocabulary.num_tokens(); ++id) {
    if (!vocabulary.bytes(id).empty()) ids[std::string(vocabulary.bytes(id))] = id;
  }
  std::vector<int32_t> tokens;
  for (size_t at = 0; at < text.size();) {
    size_t length = std::min<size_t>(text.size() - at, vocabulary.token_bytes_max());
    while (ids.count(text.substr(at, length)) == 0) --length;
    CHECK_THAT(length, >, 0u);
    tokens.push_back(ids[text.substr(at, length)]);
    at += length;
  }
  return tokens;
}

}  // namespace ultraspeed::grammar
