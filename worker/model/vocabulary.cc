#include "worker/model/vocabulary.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "worker/model/json_file.h"

namespace ultraspeed::worker {
namespace {

namespace json = boost::json;

absl::Status Raise(const std::string& path, std::string_view token, const json::value& id,
                   int64_t vocabulary, int64_t* highest) {
  if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() >= vocabulary) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": token \"", std::string(token), "\" has id ", json::serialize(id),
                     "; must be an integer from 0 to ", vocabulary - 1, " (vocab_size - 1)"));
  }
  *highest = std::max(*highest, id.get_int64());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int> CountUsedTokens(const std::string& folder, int vocabulary) {
  const std::string path = folder + "/tokenizer.json";
  absl::StatusOr<json::object> object = ReadJsonObject(path);
  if (!object.ok()) return object.status();
  const json::value* model = object->if_contains("model");
  const json::value* vocab =
      model != nullptr && model->is_object() ? model->get_object().if_contains("vocab") : nullptr;
  if (vocab == nullptr || !vocab->is_object() || vocab->get_object().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": model.vocab: must be an object with at least one token"));
  }
  int64_t highest = 0;
  for (const auto& entry : vocab->get_object()) {
    const std::string_view token(entry.key().data(), entry.key().size());
    if (absl::Status s = Raise(path, token, entry.value(), vocabulary, &highest); !s.ok()) return s;
  }
  const json::value* added = object->if_contains("added_tokens");
  if (added != nullptr && added->is_array()) {
    for (const json::value& token : added->get_array()) {
      const json::value* id = token.is_object() ? token.get_object().if_contains("id") : nullptr;
      if (id == nullptr) {
        return absl::InvalidArgumentError(absl::StrCat(path, ": added_tokens: an id is missing"));
      }
      if (absl::Status s = Raise(path, "(added)", *id, vocabulary, &highest); !s.ok()) return s;
    }
  }
  return static_cast<int>(highest) + 1;
}

}  // namespace ultraspeed::worker
