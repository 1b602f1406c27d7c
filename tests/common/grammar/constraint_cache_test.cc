#include "common/grammar/constraint_cache.h"

#include <gtest/gtest.h>

#include <string>

namespace ultraspeed::grammar {
namespace {

std::shared_ptr<const Vocabulary> Bytes() {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  return std::make_shared<Vocabulary>(std::move(tokens), std::vector<int32_t>{});
}

TEST(ConstraintCache, KeepsThoseUsedLast) {
  ConstraintCache cache(Bytes(), 2);
  const auto get = [&](const std::string& schema) {
    return *cache.ForJsonSchema(schema, "schema");
  };
  const auto a = get(R"({"type":"null"})"), b = get(R"({"type":"boolean"})");
  EXPECT_NE(a, b);
  EXPECT_EQ(get(R"({"type":"null"})"), a);
  const auto c = get(R"({"type":"string"})");  // takes the place of b
  EXPECT_EQ(get(R"({"type":"null"})"), a);
  EXPECT_EQ(get(R"({"type":"string"})"), c);
  EXPECT_NE(get(R"({"type":"boolean"})"), b);
  EXPECT_FALSE(b->Start().is_dead());  // who has it keeps it
}

TEST(ConstraintCache, ErrorsAreNotKept) {
  ConstraintCache cache(Bytes(), 2);
  EXPECT_EQ(cache.ForJsonSchema(R"({"not":{}})", "a").status().message(),
            R"(a: "not" is not supported)");
  EXPECT_EQ(cache.ForJsonSchema(R"({"not":{}})", "b").status().message(),
            R"(b: "not" is not supported)");
}

TEST(ConstraintCache, AnyJsonObject) {
  ConstraintCache cache(Bytes());
  const auto constraint = cache.ForAnyJsonObject();
  EXPECT_EQ(cache.ForAnyJsonObject(), constraint);
  EXPECT_NE(*cache.ForJsonSchema(R"({"type":"object"})", "schema"), constraint);
  EXPECT_FALSE(constraint->Advance(constraint->Start(), '{').is_dead());
}

}  // namespace
}  // namespace ultraspeed::grammar
