// What the router's tests share: the small tokenizer of fixtures/, files, random text. Any thread.
#pragma once

#include <memory>
#include <random>
#include <string>

#include "router/tokenizer.h"

namespace ultraspeed::router {

inline constexpr char kFixtures[] = "tests/router/fixtures/";

// The file's bytes; fails the test and returns "" if it cannot be read.
std::string ReadTestFile(const std::string& path);
// The fixture tokenizer, loaded once.
const Tokenizer& TestTokenizer();
// Well-formed UTF-8 of up to `characters_max` characters: ASCII, marks, scripts, emoji, controls.
std::string RandomText(std::mt19937_64& random, int characters_max);
// The seed of the property tests; ULTRASPEED_TEST_SEED sets another one.
uint64_t TestSeed();

}  // namespace ultraspeed::router
