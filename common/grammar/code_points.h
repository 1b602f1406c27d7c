// Sets of Unicode code points, of which patterns are made.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace ultraspeed::grammar {

inline constexpr uint32_t kCodePointMax = 0x10FFFF;

struct CodePointRange {
  uint32_t first = 0;
  uint32_t last = 0;  // inclusive
};

class CodePoints {
 public:
  CodePoints() = default;
  CodePoints(std::initializer_list<CodePointRange> ranges) {
    for (const CodePointRange& range : ranges) Add(range);
  }

  void Add(CodePointRange range);
  void Add(const CodePoints& others);
  CodePoints Complement() const;

  bool Contains(uint32_t code_point) const;
  // Ascending, with others between any two.
  absl::Span<const CodePointRange> ranges() const { return ranges_; }

 private:
  std::vector<CodePointRange> ranges_;
};

// REQUIRES: UTF-8.
std::vector<uint32_t> CodePointsOf(absl::string_view text);

}  // namespace ultraspeed::grammar
