#include "tests/common/grammar/random_texts.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace ultraspeed::grammar {
namespace {

// Every level that is open may take a handful, and a line break with its indentation.
constexpr int kSteeringTokensMax = 10'000;

// The token that leads to the end soonest, as a rule: what closes something, then what is short.
int32_t SteeringToken(const TokenMask& mask, const Vocabulary& vocabulary) {
  static const std::vector<int32_t>* const order = [&vocabulary] {
    auto* tokens = new std::vector<int32_t>;
    for (int32_t token = 0; token < vocabulary.num_tokens(); ++token) {
      if (vocabulary.is_end(token)) tokens->push_back(token);
    }
    std::string bytes = "\"}]:0123456789nt,{[";
    for (int byte = 0; byte < 256; ++byte) bytes += static_cast<char>(byte);
    for (const char c : bytes) {
      for (int32_t token = 0; token < vocabulary.num_tokens(); ++token) {
        if (vocabulary.bytes(token) == std::string(1, c)) tokens->push_back(token);
      }
    }
    return tokens;
  }();
  for (const int32_t token : *order) {
    if (mask.Allows(token)) return token;
  }
  return -1;
}

std::vector<int32_t> AllowedOf(const TokenMask& mask, const Vocabulary& vocabulary) {
  std::vector<int32_t> tokens;
  for (int32_t token = 0; token < vocabulary.num_tokens(); ++token) {
    if (mask.Allows(token)) tokens.push_back(token);
  }
  return tokens;
}

// The state behind the first of `closers` that may come, which is added to the text; else dead.
State Close(Constraint* constraint, const State& state,
            absl::Span<const std::vector<int32_t>> closers, std::string* text) {
  for (const std::vector<int32_t>& closer : closers) {
    State next = state;
    for (const int32_t token : closer) next = constraint->Advance(next, token);
    if (next.is_dead()) continue;
    for (const int32_t token : closer) *text += std::string(BundledVocabulary()->bytes(token));
    return next;
  }
  return State();
}

}  // namespace

std::string RandomText(Constraint* constraint, const Vocabulary& vocabulary, int num_random_tokens,
                       std::mt19937* random, absl::Span<const std::string> closers) {
  std::vector<std::vector<int32_t>> closing;
  for (const std::string& closer : closers) closing.push_back(Tokenize(vocabulary, closer));
  State state = constraint->Start();
  std::string text;
  for (int i = 0; i < num_random_tokens + kSteeringTokensMax; ++i) {
    if (i >= num_random_tokens) {
      const State closed = Close(constraint, state, closing, &text);
      if (!closed.is_dead()) {
        state = closed;
        continue;
      }
    }
    const auto mask = constraint->AllowedTokens(state);
    int32_t token = SteeringToken(*mask, vocabulary);
    if (token < 0) return "";
    if (i < num_random_tokens) {
      // Half of the time one of the few that close or begin something.
      std::vector<int32_t> allowed = AllowedOf(*mask, vocabulary);
      std::erase_if(allowed, [&](int32_t one) { return vocabulary.is_end(one); });
      if (!allowed.empty() && ((*random)() % 2 == 0 || vocabulary.is_end(token))) {
        token = allowed[(*random)() % allowed.size()];
      }
    }
    if (vocabulary.is_end(token)) return text;
    state = constraint->Advance(state, token);
    if (state.is_dead()) return "";
    text += std::string(vocabulary.bytes(token));
  }
  return "";
}

std::string RandomSchema(int depth, std::mt19937* random) {
  const auto pick = [random](int n) { return static_cast<int>((*random)() % n); };
  const auto list = [&](int n) {
    std::vector<std::string> schemas;
    for (int i = 0; i < n; ++i) schemas.push_back(RandomSchema(depth - 1, random));
    return absl::StrJoin(schemas, ",");
  };
  switch (pick(depth > 0 ? 14 : 9)) {
    case 0:
      return R"({"type":["integer","null"]})";
    case 1:
      return R"({"type":"number"})";
    case 2: {
      const int min = pick(5);
      return absl::StrCat(R"({"type":"string","minLength":)", min, R"(,"maxLength":)",
                          min + pick(40), "}");
    }
    case 3:
      return R"({"enum":["a","ab",1,12,null,true,[1],{"x":"é"}]})";
    case 4: {
      const int min = pick(4000) - 2000;
      return absl::StrCat(R"({"type":"integer","minimum":)", min, R"(,"maximum":)",
                          min + pick(3000), "}");
    }
    case 5:
      return pick(2) == 0 ? "{}" : R"({"type":["null","boolean","string"]})";
    case 6:
      return absl::StrCat(R"({"$ref":"#/$defs/)", pick(2) == 0 ? "x" : "y", "\"}");
    case 7: {
      const double min = (pick(4000) - 2000) / 16.0, width = 0.25 + pick(40) / 4.0;
      return absl::StrCat(
          R"({"type":"number",)", pick(2) == 0 ? R"("minimum":)" : R"("exclusiveMinimum":)", min,
          pick(2) == 0 ? R"(,"maximum":)" : R"(,"exclusiveMaximum":)", min + width, "}");
    }
    case 8: {
      constexpr const char* kPatterns[] = {
          R"("^[a-z]{2,5}(-[0-9]+)?$")",
          R"("b","maxLength":20)",
          R"("^a|z$","maxLength":6)",
          R"("^([A-Z][a-z]* )*[A-Z]\\.$","minLength":3,"maxLength":12)",
          R"("^[^x\\\\]*$")",
          R"("^(a|ab)(c|bcd)*$")"};
      return absl::StrCat(R"({"type":"string","pattern":)", kPatterns[pick(6)], "}");
    }
    case 9:
    case 10: {
      std::vector<std::string> properties, required;
      for (const char* name : {"a", "ab", "é", "q\\\""}) {
        if (pick(2) == 0) continue;
        properties.push_back(absl::StrCat("\"", name, "\":", RandomSchema(depth - 1, random)));
        if (pick(2) == 0) required.push_back(absl::StrCat("\"", name, "\""));
      }
      const std::string others = pick(3) == 0   ? "true"
                                 : pick(2) == 0 ? "false"
                                                : RandomSchema(depth - 1, random);
      return absl::StrCat(R"({"type":"object","properties":{)", absl::StrJoin(properties, ","),
                          R"(},"required":[)", absl::StrJoin(required, ","),
                          R"(],"additionalProperties":)", others, "}");
    }
    case 11:
    case 12: {
      const int min = pick(4);
      const std::string first =
          pick(3) == 0 ? absl::StrCat(R"("prefixItems":[)", list(1 + pick(3)), "],") : "";
      const std::string others = pick(8) == 0 ? "false" : RandomSchema(depth - 1, random);
      return absl::StrCat(R"({"type":"array",)", first, R"("minItems":)", min, R"(,"maxItems":)",
                          min + pick(3), R"(,"items":)", others, "}");
    }
    default:
      return absl::StrCat(R"({"anyOf":[)", list(1 + pick(3)), "]}");
  }
}

}  // namespace ultraspeed::grammar
