#include "common/grammar/pattern.h"

#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace ultraspeed::grammar {
namespace {

using Kind = Pattern::Kind;

const CodePoints& Digits() {
  static const auto* const set = new CodePoints{{'0', '9'}};
  return *set;
}
const CodePoints& WordCharacters() {
  static const auto* const set = new CodePoints{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
  return *set;
}
const CodePoints& Spaces() {
  static const auto* const set = new CodePoints{
      {'\t', '\r'},     {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680}, {0x2000, 0x200A},
      {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
  return *set;
}
// All but line feeds. ECMA-262 takes U+2028 and U+2029 for such, most others do not.
CodePoints Dot() { return CodePoints{{'\n', '\n'}, {'\r', '\r'}}.Complement(); }

Pattern OneOfCharacters(CodePoints characters) {
  Pattern pattern;
  pattern.kind = Kind::kCharacters;
  pattern.characters = std::move(characters);
  return pattern;
}

class Parser {
 public:
  explicit Parser(std::vector<uint32_t> text) : text_(std::move(text)) {}

  absl::StatusOr<Pattern> Parse() {
    ASSIGN_OR_RETURN(Pattern pattern, Alternatives(0));
    if (!AtEnd()) return Error("nothing to close");
    return pattern;
  }

 private:
  // Past the end: a character that is none.
  static constexpr uint32_t kNone = kCodePointMax + 1;
  uint32_t Peek(size_t ahead = 0) const {
    return next_ + ahead < text_.size() ? text_[next_ + ahead] : kNone;
  }
  bool AtEnd() const { return next_ == text_.size(); }
  bool Take(absl::string_view expected) {
    for (size_t i = 0; i < expected.size(); ++i) {
      if (Peek(i) != static_cast<uint8_t>(expected[i])) return false;
    }
    next_ += expected.size();
    return true;
  }
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(what, " at character ", next_));
  }

  absl::StatusOr<Pattern> Alternatives(int depth) {
    if (depth > limits::kPatternDepthMax) {
      return Error(absl::StrCat("more than ", limits::kPatternDepthMax, " groups in each other"));
    }
    Pattern alternatives;
    alternatives.kind = Kind::kAlternatives;
    do {
      ASSIGN_OR_RETURN(Pattern sequence, Sequence(depth));
      alternatives.parts.push_back(std::move(sequence));
    } while (Take("|"));
    return alternatives;
  }

  absl::StatusOr<Pattern> Sequence(int depth) {
    Pattern sequence;
    while (!AtEnd() && Peek() != '|' && Peek() != ')') {
      ASSIGN_OR_RETURN(Pattern atom, Atom(depth));
      ASSIGN_OR_RETURN(Pattern repeated, Quantified(std::move(atom)));
      sequence.parts.push_back(std::move(repeated));
    }
    return sequence;
  }

  absl::StatusOr<Pattern> Atom(int depth) {
    Pattern anchor;
    if (Take("^")) {
      anchor.kind = Kind::kBegin;
      return anchor;
    }
    if (Take("$")) {
      anchor.kind = Kind::kEnd;
      return anchor;
    }
    if (Take(".")) return OneOfCharacters(Dot());
    if (Peek() == '(') return Group(depth);
    if (Peek() == '[') return Class();
    if (Peek() == '\\') {
      ASSIGN_OR_RETURN(CodePoints characters, Escape(/*in_class=*/false));
      return OneOfCharacters(std::move(characters));
    }
    for (const char quantifier : absl::string_view("*+?{")) {
      if (Peek() == static_cast<uint8_t>(quantifier)) return Error("nothing to repeat");
    }
    const uint32_t literal = text_[next_++];
    return OneOfCharacters({{literal, literal}});
  }

  absl::StatusOr<Pattern> Group(int depth) {
    const size_t begin = next_;
    Take("(");
    if (Take("?")) {
      const bool is_named = Peek() == '<' && Peek(1) != '=' && Peek(1) != '!';
      if (is_named || Take("P<")) {
        while (!AtEnd() && Peek() != '>') ++next_;
        if (!Take(">")) return Error("no end of a group's name");
      } else if (!Take(":")) {
        next_ = begin;
        return Error("this kind of group is not supported,");
      }
    }
    ASSIGN_OR_RETURN(Pattern inside, Alternatives(depth + 1));
    if (!Take(")")) return Error("no end of a group");
    return inside;
  }

  absl::StatusOr<Pattern> Quantified(Pattern atom) {
    uint32_t min = 0, max = Pattern::kUnbounded;
    if (Take("+")) {
      min = 1;
    } else if (Take("?")) {
      max = 1;
    } else if (Peek() == '{') {
      ASSIGN_OR_RETURN(std::tie(min, max), Bounds());
    } else if (!Take("*")) {
      return atom;
    }
    Take("?");
    if (atom.kind == Kind::kBegin || atom.kind == Kind::kEnd) return Error("nothing to repeat");
    Pattern repeat;
    repeat.kind = Kind::kRepeat;
    repeat.min = min;
    repeat.max = max;
    repeat.parts.push_back(std::move(atom));
    return repeat;
  }

  absl::StatusOr<std::pair<uint32_t, uint32_t>> Bounds() {
    Take("{");
    ASSIGN_OR_RETURN(const uint32_t min, Number());
    uint32_t max = min;
    if (Take(",")) {
      max = Pattern::kUnbounded;
      if (Peek() != '}') {
        ASSIGN_OR_RETURN(max, Number());
      }
    }
    if (!Take("}")) return Error("no end of a repetition");
    if (min > max) return Error("a repetition from more to less");
    return std::pair(min, max);
  }

  absl::StatusOr<uint32_t> Number() {
    uint32_t number = 0;
    if (!Digits().Contains(Peek())) return Error("no number");
    while (Digits().Contains(Peek())) {
      number = number * 10 + (text_[next_++] - '0');
      if (number > limits::kPatternPartsMax) {
        return Error(absl::StrCat("a repetition beyond ", limits::kPatternPartsMax));
      }
    }
    return number;
  }

  absl::StatusOr<Pattern> Class() {
    Take("[");
    const bool is_complement = Take("^");
    CodePoints characters;
    while (Peek() != ']') {
      if (AtEnd()) return Error("no end of a class");
      ASSIGN_OR_RETURN(const CodePoints first, ClassMember());
      const bool is_range = Peek() == '-' && Peek(1) != ']' && Peek(1) != kNone;
      if (!is_range) {
        characters.Add(first);
        continue;
      }
      Take("-");
      ASSIGN_OR_RETURN(const CodePoints last, ClassMember());
      const auto is_one = [](const CodePoints& set) {
        return set.ranges().size() == 1 && set.ranges()[0].first == set.ranges()[0].last;
      };
      if (!is_one(first) || !is_one(last)) return Error("no range of characters");
      const CodePointRange range = {first.ranges()[0].first, last.ranges()[0].last};
      if (range.first > range.last) return Error("a range from more to less");
      characters.Add(range);
    }
    Take("]");
    return OneOfCharacters(is_complement ? characters.Complement() : std::move(characters));
  }

  absl::StatusOr<CodePoints> ClassMember() {
    if (Peek() == '\\') return Escape(/*in_class=*/true);
    const uint32_t literal = text_[next_++];
    return CodePoints{{literal, literal}};
  }

  absl::StatusOr<CodePoints> Escape(bool in_class) {
    Take("\\");
    if (AtEnd()) return Error("nothing behind a backslash");
    const uint32_t name = text_[next_++];
    const auto one = [](uint32_t character) { return CodePoints{{character, character}}; };
    switch (name) {
      case 'd':
        return Digits();
      case 'D':
        return Digits().Complement();
      case 'w':
        return WordCharacters();
      case 'W':
        return WordCharacters().Complement();
      case 's':
        return Spaces();
      case 'S':
        return Spaces().Complement();
      case 't':
        return one('\t');
      case 'n':
        return one('\n');
      case 'v':
        return one('\v');
      case 'f':
        return one('\f');
      case 'r':
        return one('\r');
      case '0':
        if (!Digits().Contains(Peek())) return one(0);
        break;
      case 'b':
        if (in_class) return one('\b');
        break;
      case 'x':
      case 'u': {
        ASSIGN_OR_RETURN(const uint32_t character, Hexadecimal(name == 'x' ? 2 : 4));
        return one(character);
      }
      default:
        break;
    }
    const bool is_letter_or_digit = name < 0x80 && WordCharacters().Contains(name) && name != '_';
    if (!is_letter_or_digit) return one(name);
    next_ -= 1;
    return Error(
        absl::StrCat("\"\\", std::string(1, static_cast<char>(name)), "\" is not supported,"));
  }

  // Of a \x or \u; a pair of surrogates is one character.
  absl::StatusOr<uint32_t> Hexadecimal(int num_digits) {
    if (num_digits == 4 && Take("{")) {
      ASSIGN_OR_RETURN(const uint32_t character, HexadecimalDigits(1, 6));
      if (!Take("}") || character > kCodePointMax) return Error("no code point");
      return character;
    }
    ASSIGN_OR_RETURN(const uint32_t unit, HexadecimalDigits(num_digits, num_digits));
    if (unit < 0xD800 || unit > 0xDBFF || !Take("\\u")) return unit;
    ASSIGN_OR_RETURN(const uint32_t low, HexadecimalDigits(4, 4));
    if (low < 0xDC00 || low > 0xDFFF) return Error("half of a pair of surrogates");
    return 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
  }
  absl::StatusOr<uint32_t> HexadecimalDigits(int min, int max) {
    uint32_t value = 0;
    int count = 0;
    for (; count < max; ++count, ++next_) {
      const uint32_t c = Peek();
      const bool is_digit = '0' <= c && c <= '9', is_lower = 'a' <= c && c <= 'f';
      if (!is_digit && !is_lower && !('A' <= c && c <= 'F')) break;
      value = value * 16 + (is_digit ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    if (count < min) return Error("no hexadecimal number");
    return value;
  }

  const std::vector<uint32_t> text_;
  size_t next_ = 0;
};

}  // namespace

absl::StatusOr<Pattern> ParsePattern(absl::string_view text) {
  return Parser(CodePointsOf(text)).Parse();
}

}  // namespace ultraspeed::grammar
