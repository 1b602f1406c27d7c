#include "common/grammar/code_points.h"

#include <algorithm>

namespace ultraspeed::grammar {

void CodePoints::Add(CodePointRange range) {
  // Those that touch it become one with it.
  const auto begin = std::find_if(ranges_.begin(), ranges_.end(), [&](const CodePointRange& other) {
    return uint64_t{other.last} + 1 >= range.first;
  });
  auto end = begin;
  for (; end != ranges_.end() && end->first <= uint64_t{range.last} + 1; ++end) {
    range.first = std::min(range.first, end->first);
    range.last = std::max(range.last, end->last);
  }
  ranges_.insert(ranges_.erase(begin, end), range);
}

void CodePoints::Add(const CodePoints& others) {
  for (const CodePointRange& range : others.ranges_) Add(range);
}

CodePoints CodePoints::Complement() const {
  CodePoints others;
  uint32_t next = 0;
  for (const CodePointRange& range : ranges_) {
    if (range.first > next) others.ranges_.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kCodePointMax) others.ranges_.push_back({next, kCodePointMax});
  return others;
}

bool CodePoints::Contains(uint32_t code_point) const {
  return std::any_of(ranges_.begin(), ranges_.end(), [code_point](const CodePointRange& range) {
    return range.first <= code_point && code_point <= range.last;
  });
}

std::vector<uint32_t> CodePointsOf(absl::string_view text) {
  std::vector<uint32_t> code_points;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if ((byte & 0xC0) == 0x80) {
      code_points.back() = code_points.back() << 6 | (byte & 0x3Fu);
    } else {
      const uint32_t bits = byte < 0x80 ? 0x7F : byte < 0xE0 ? 0x1F : byte < 0xF0 ? 0x0F : 0x07;
      code_points.push_back(byte & bits);
    }
  }
  return code_points;
}

}  // namespace ultraspeed::grammar
