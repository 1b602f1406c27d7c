#include "router/text_splitter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"

namespace ultraspeed::router {
namespace {

constexpr absl::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// White_Space of Unicode. PCRE2's own \s also has U+180E, which the trained splits do not treat as
// a space.
#define SPACE \
  R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})"
constexpr char kPcrePattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^)" SPACE
    R"(\p{L}\p{N}]+[\r\n]*|[)" SPACE R"(]*[\r\n]+|[)" SPACE R"(]+(?![^)" SPACE R"(])|[)" SPACE
    R"(]+)";
#undef SPACE

// Steps of one match. A piece costs a few steps per byte and a text at most kPromptBytesMax bytes,
// so this is never met.
constexpr uint32_t kMatchLimit = 100'000'000;

struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeMatchContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

std::string MessageOf(int error) {
  PCRE2_UCHAR buffer[128] = {};
  pcre2_get_error_message(error, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

absl::StatusOr<std::unique_ptr<TextSplitter>> TextSplitter::Create(absl::string_view pattern) {
  if (pattern != kQwen2Pattern) {
    return absl::InvalidArgumentError(
        absl::StrCat("pre_tokenizer: split pattern \"", pattern.substr(0, 200),
                     "\" is not supported; only the Qwen2 pattern is"));
  }
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(kPcrePattern), PCRE2_ZERO_TERMINATED,
                    PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &error_offset, nullptr);
  if (code == nullptr) {
    return absl::InternalError(
        absl::StrCat("split pattern, offset ", error_offset, ": ", MessageOf(error)));
  }
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where there is no JIT, matching interprets
  return std::unique_ptr<TextSplitter>(new TextSplitter(code));
}

TextSplitter::~TextSplitter() { pcre2_code_free(static_cast<pcre2_code*>(code_)); }

absl::Status TextSplitter::Split(absl::string_view text,
                                 absl::FunctionRef<void(absl::string_view)> piece) const {
  const auto* code = static_cast<const pcre2_code*>(code_);
  const std::unique_ptr<pcre2_match_data, FreeMatchData> match(pcre2_match_data_create(1, nullptr));
  const std::unique_ptr<pcre2_match_context, FreeMatchContext> context(
      pcre2_match_context_create(nullptr));
  if (match == nullptr || context == nullptr) return absl::ResourceExhaustedError("out of memory");
  pcre2_set_match_limit(context.get(), kMatchLimit);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  for (size_t begin = 0; begin < text.size();) {
    int found = pcre2_match(code, subject, text.size(), begin, PCRE2_NO_UTF_CHECK, match.get(),
                            context.get());
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      found = pcre2_match(code, subject, text.size(), begin, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                          match.get(), context.get());
    }
    const size_t end = found > 0 ? pcre2_get_ovector_pointer(match.get())[1] : begin;
    if (end <= begin) {
      return absl::InternalError(absl::StrCat("splitting at byte ", begin, " of ", text.size(),
                                              ": ", found < 0 ? MessageOf(found) : "empty piece"));
    }
    piece(text.substr(begin, end - begin));
    begin = end;
  }
  return absl::OkStatus();
}

}  // namespace ultraspeed::router
