// The letters in which byte-level vocabularies spell bytes: printable ones stand for themselves,
// those from U+0100 on for the other bytes, in order (GPT-2's tokenizer, and Qwen's after it).
// Header-only.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace ultraspeed {

inline constexpr int kByteLetters = 324;  // code points below; the last letter is U+0143

// [code point] the byte, or -1.
inline std::array<int16_t, kByteLetters> MakeByteOfLetter() {
  std::array<int16_t, kByteLetters> bytes;
  bytes.fill(-1);
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    bytes[static_cast<size_t>(prints ? byte : next++)] = static_cast<int16_t>(byte);
  }
  return bytes;
}

// Bytes of a vocabulary entry; nothing if it has a character outside the alphabet.
inline std::optional<std::string> BytesOfEntry(absl::string_view entry) {
  static const std::array<int16_t, kByteLetters> kByteOf = MakeByteOfLetter();
  std::string bytes;
  for (size_t i = 0; i < entry.size(); ++i) {
    int code_point = static_cast<uint8_t>(entry[i]);
    if (code_point >= 0x80) {  // two bytes at most
      if (code_point >= 0xE0 || i + 1 == entry.size()) return std::nullopt;
      code_point = (code_point & 0x1F) << 6 | (static_cast<uint8_t>(entry[++i]) & 0x3F);
    }
    if (code_point >= kByteLetters || kByteOf[static_cast<size_t>(code_point)] < 0)
      return std::nullopt;
    bytes.push_back(static_cast<char>(kByteOf[static_cast<size_t>(code_point)]));
  }
  return bytes;
}

}  // namespace ultraspeed
