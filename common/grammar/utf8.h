// UTF-8 byte by byte: which bytes may follow (Unicode, table 3-7). Tokens cut characters anywhere.
#pragma once

#include <cstdint>

namespace ultraspeed::grammar {

enum class Utf8State : uint8_t {
  kBoundary,  // between two characters
  kOneMore,   // so many continuation bytes to come
  kTwoMore,
  kThreeMore,
  kAfterE0,  // the second byte has a range of its own
  kAfterED,
  kAfterF0,
  kAfterF4,
  kInvalid,
};
inline constexpr int kNumUtf8States = static_cast<int>(Utf8State::kInvalid);

constexpr Utf8State Utf8Next(Utf8State state, uint8_t byte) {
  const auto within = [byte](uint8_t first, uint8_t last, Utf8State next) {
    return first <= byte && byte <= last ? next : Utf8State::kInvalid;
  };
  switch (state) {
    case Utf8State::kBoundary:
      if (byte < 0x80) return Utf8State::kBoundary;
      if (byte == 0xE0) return Utf8State::kAfterE0;
      if (byte == 0xED) return Utf8State::kAfterED;
      if (byte == 0xF0) return Utf8State::kAfterF0;
      if (byte == 0xF4) return Utf8State::kAfterF4;
      if (byte < 0xE0) return within(0xC2, 0xDF, Utf8State::kOneMore);
      if (byte < 0xF0) return Utf8State::kTwoMore;
      return within(0xF1, 0xF3, Utf8State::kThreeMore);
    case Utf8State::kOneMore:
      return within(0x80, 0xBF, Utf8State::kBoundary);
    case Utf8State::kTwoMore:
      return within(0x80, 0xBF, Utf8State::kOneMore);
    case Utf8State::kThreeMore:
      return within(0x80, 0xBF, Utf8State::kTwoMore);
    case Utf8State::kAfterE0:
      return within(0xA0, 0xBF, Utf8State::kOneMore);
    case Utf8State::kAfterED:
      return within(0x80, 0x9F, Utf8State::kOneMore);
    case Utf8State::kAfterF0:
      return within(0x90, 0xBF, Utf8State::kTwoMore);
    case Utf8State::kAfterF4:
      return within(0x80, 0x8F, Utf8State::kTwoMore);
    case Utf8State::kInvalid:
      break;
  }
  return Utf8State::kInvalid;
}

// A byte that stands for itself in every kind of text that grammars know: what ends or escapes text
// begins with one of the others.
constexpr bool IsPlain(uint8_t byte) {
  return byte >= 0x20 && byte != '"' && byte != '\\' && byte != '<';
}

}  // namespace ultraspeed::grammar
