#include "router/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ultraspeed::router {
namespace {

// Bytes of a well-formed beginning of one character at the head of `bytes` (Unicode table 3-7), and
// how many the lead byte asks for; wanted is 0 when the lead byte itself is wrong.
struct Prefix {
  int good;
  int wanted;
};

Prefix PrefixOf(absl::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = at(0);
  if (lead < 0x80) return {1, 1};
  if (lead < 0xC2 || lead > 0xF4) return {0, 0};
  const int wanted = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  uint8_t low = 0x80, high = 0xBF;  // of the second byte
  if (lead == 0xE0) low = 0xA0;     // overlong
  if (lead == 0xED) high = 0x9F;    // surrogates
  if (lead == 0xF0) low = 0x90;     // overlong
  if (lead == 0xF4) high = 0x8F;    // over U+10FFFF
  int good = 1;
  while (good < wanted && static_cast<size_t>(good) < bytes.size()) {
    if (at(good) < low || at(good) > high) break;
    low = 0x80;
    high = 0xBF;
    ++good;
  }
  return {good, wanted};
}

uint8_t CombiningClass(int32_t code_point) {
  return static_cast<uint8_t>(utf8proc_get_property(code_point)->combining_class);
}

}  // namespace

int CharacterBytes(absl::string_view bytes) {
  const Prefix prefix = PrefixOf(bytes);
  if (prefix.wanted == 0) return 0;
  if (prefix.good == prefix.wanted) return prefix.good;
  return static_cast<size_t>(prefix.good) == bytes.size() ? -1 : 0;
}

int InvalidBytes(absl::string_view bytes) { return std::max(1, PrefixOf(bytes).good); }

size_t FirstInvalidByte(absl::string_view text) {
  size_t offset = 0;
  while (offset < text.size()) {
    if (static_cast<uint8_t>(text[offset]) < 0x80) {
      ++offset;
      continue;
    }
    const int bytes = CharacterBytes(text.substr(offset));
    if (bytes <= 0) return offset;
    offset += bytes;
  }
  return offset;
}

bool IsQuicklyNfc(absl::string_view text) {
  // Every character below U+0300 is its own NFC and no combining mark; their lead bytes are below
  // 0xCC.
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 0xCC; });
}

std::string ToNfc(absl::string_view text) {
  // utf8proc_NFC would do, were its ordering of combining marks not quadratic in the length of
  // their run.
  std::vector<int32_t> code_points;
  code_points.reserve(text.size());
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  for (size_t offset = 0; offset < text.size();) {
    utf8proc_int32_t code_point = 0;
    const utf8proc_ssize_t used = utf8proc_iterate(
        bytes + offset, static_cast<utf8proc_ssize_t>(text.size() - offset), &code_point);
    if (used <= 0) break;  // REQUIRES of the header
    offset += static_cast<size_t>(used);
    utf8proc_int32_t parts[32];
    int boundary = UTF8PROC_BOUNDCLASS_START;
    const utf8proc_ssize_t num_parts =
        utf8proc_decompose_char(code_point, parts, 32, UTF8PROC_DECOMPOSE, &boundary);
    code_points.insert(code_points.end(), parts, parts + std::min<utf8proc_ssize_t>(num_parts, 32));
  }
  const auto starts = [](int32_t code_point) { return CombiningClass(code_point) == 0; };
  for (auto run = code_points.begin(); run != code_points.end();) {
    if (starts(*run)) {
      ++run;
      continue;
    }
    const auto end = std::find_if(run, code_points.end(), starts);
    if (end - run > 1) {
      std::stable_sort(run, end,
                       [](int32_t a, int32_t b) { return CombiningClass(a) < CombiningClass(b); });
    }
    run = end;
  }
  const utf8proc_ssize_t num_composed = utf8proc_normalize_utf32(
      code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()),
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  std::string nfc;
  nfc.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < num_composed; ++i) {
    utf8proc_uint8_t encoded[4];
    const utf8proc_ssize_t num_bytes =
        utf8proc_encode_char(code_points[static_cast<size_t>(i)], encoded);
    nfc.append(reinterpret_cast<const char*>(encoded), static_cast<size_t>(num_bytes));
  }
  return nfc;
}

}  // namespace ultraspeed::router
