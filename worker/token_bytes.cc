#include "worker/token_bytes.h"

#include <boost/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/byte_alphabet.h"

namespace ultraspeed::worker {
namespace {

namespace json = boost::json;

// Null if the path leads to no object.
const json::object* ObjectAt(const json::value& root, absl::Span<const char* const> path) {
  const json::value* at = &root;
  for (const char* const key : path) {
    if (!at->is_object()) return nullptr;
    at = at->get_object().if_contains(key);
    if (at == nullptr) return nullptr;
  }
  return at->if_object();
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ReadTokenBytes(absl::string_view tokenizer_json,
                                                        int num_tokens) {
  boost::system::error_code error;
  const json::value root =
      json::parse(json::string_view(tokenizer_json.data(), tokenizer_json.size()), error);
  if (error) return absl::InvalidArgumentError("tokenizer.json: is not JSON");
  const json::object* const entries = ObjectAt(root, {"model", "vocab"});
  if (entries == nullptr)
    return absl::InvalidArgumentError("tokenizer.json: model.vocab: must be an object");
  std::vector<std::string> bytes(static_cast<size_t>(num_tokens));
  for (const auto& entry : *entries) {
    const int64_t* const id = entry.value().if_int64();
    if (id == nullptr || *id < 0 || *id >= num_tokens) continue;
    const absl::string_view text(entry.key().data(), entry.key().size());
    std::optional<std::string> token = BytesOfEntry(text);
    if (!token.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: model.vocab: token ", *id,
                                                     " is not spelled in the byte-level alphabet"));
    }
    bytes[static_cast<size_t>(*id)] = *std::move(token);
  }
  const json::value* const added = root.get_object().if_contains("added_tokens");
  if (added == nullptr || !added->is_array()) return bytes;
  for (const json::value& token : added->get_array()) {
    const json::value* const id =
        token.is_object() ? token.get_object().if_contains("id") : nullptr;
    const int64_t* const number = id == nullptr ? nullptr : id->if_int64();
    if (number != nullptr && *number >= 0 && *number < num_tokens)
      bytes[static_cast<size_t>(*number)].clear();
  }
  return bytes;
}

}  // namespace ultraspeed::worker
