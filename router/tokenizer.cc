#include "router/tokenizer.h"

#include <algorithm>
#include <boost/json.hpp>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/byte_alphabet.h"
#include "common/limits.h"
#include "router/byte_pair_encoder.h"
#include "router/text_splitter.h"
#include "router/unicode.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

constexpr int64_t kVocabularyMax = 1 << 22;

absl::Status Refuse(absl::string_view where, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", where, " ", what));
}

absl::string_view View(const json::string& text) { return {text.data(), text.size()}; }

// Null if absent or if `object` is null.
const json::value* Field(const json::object* object, absl::string_view key) {
  return object == nullptr ? nullptr
                           : object->if_contains(json::string_view(key.data(), key.size()));
}

const json::object* ObjectField(const json::object* object, absl::string_view key) {
  const json::value* value = Field(object, key);
  return value == nullptr ? nullptr : value->if_object();
}

// Empty if absent or no string.
absl::string_view TextField(const json::object* object, absl::string_view key) {
  const json::value* value = Field(object, key);
  return value == nullptr || !value->is_string() ? absl::string_view() : View(value->get_string());
}

// INVALID_ARGUMENT unless the field is absent, null, or what an absent field means: false, zero or
// empty.
absl::Status RequireUnset(const json::object& object, absl::string_view where,
                          absl::string_view key) {
  const json::value* value = Field(&object, key);
  if (value == nullptr || value->is_null()) return absl::OkStatus();
  if (value->is_bool() && !value->get_bool()) return absl::OkStatus();
  if (value->is_string() && value->get_string().empty()) return absl::OkStatus();
  if (value->is_double() && value->get_double() == 0) return absl::OkStatus();
  return Refuse(absl::StrCat(where, key), "is set, which is not supported");
}

absl::Status RequireType(const json::object* object, absl::string_view where,
                         absl::string_view type) {
  const absl::string_view found = TextField(object, "type");
  if (object != nullptr && found == type) return absl::OkStatus();
  return Refuse(where, absl::StrCat("has type \"", found.substr(0, 64), "\"; only \"", type,
                                    "\" is supported"));
}

absl::Status CheckNormalizerAndPostProcessor(const json::object& root) {
  for (const absl::string_view key : {"truncation", "padding"}) {
    const json::value* value = Field(&root, key);
    if (value != nullptr && !value->is_null()) return Refuse(key, "is set, which is not supported");
  }
  if (absl::Status status = RequireType(ObjectField(&root, "normalizer"), "normalizer", "NFC");
      !status.ok()) {
    return status;
  }
  if (absl::Status status = RequireType(ObjectField(&root, "decoder"), "decoder", "ByteLevel");
      !status.ok()) {
    return status;
  }
  const json::value* post_processor = Field(&root, "post_processor");
  if (post_processor == nullptr || post_processor->is_null()) return absl::OkStatus();
  return RequireType(post_processor->if_object(), "post_processor", "ByteLevel");
}

// The split pattern of the one pre-tokenizer that is supported: Split (isolated), then byte level
// without a regex of its own.
absl::StatusOr<absl::string_view> SplitPattern(const json::object& root) {
  const json::object* sequence = ObjectField(&root, "pre_tokenizer");
  if (absl::Status status = RequireType(sequence, "pre_tokenizer", "Sequence"); !status.ok())
    return status;
  const json::value* list = Field(sequence, "pretokenizers");
  if (list == nullptr || !list->is_array() || list->get_array().size() != 2) {
    return Refuse("pre_tokenizer.pretokenizers", "must be Split and ByteLevel");
  }
  const json::object* split = list->get_array()[0].if_object();
  const json::object* byte_level = list->get_array()[1].if_object();
  if (absl::Status status = RequireType(split, "pre_tokenizer.pretokenizers[0]", "Split");
      !status.ok())
    return status;
  if (absl::Status status = RequireType(byte_level, "pre_tokenizer.pretokenizers[1]", "ByteLevel");
      !status.ok()) {
    return status;
  }
  if (TextField(split, "behavior") != "Isolated")
    return Refuse("Split.behavior", "must be \"Isolated\"");
  if (absl::Status status = RequireUnset(*split, "Split.", "invert"); !status.ok()) return status;
  if (absl::Status status = RequireUnset(*byte_level, "ByteLevel.", "add_prefix_space");
      !status.ok())
    return status;
  const json::value* use_regex = Field(byte_level, "use_regex");  // absent means true
  if (use_regex == nullptr || !use_regex->is_bool() || use_regex->get_bool()) {
    return Refuse("ByteLevel.use_regex", "must be false");
  }
  return TextField(ObjectField(split, "pattern"), "Regex");
}

absl::StatusOr<int32_t> CheckedId(const json::value& value, absl::string_view where) {
  if (!value.is_int64() || value.get_int64() < 0 || value.get_int64() >= kVocabularyMax) {
    return Refuse(where, absl::StrCat("has an id that is not in 0..", kVocabularyMax - 1));
  }
  return static_cast<int32_t>(value.get_int64());
}

// The vocabulary of the model section.
struct Vocabulary {
  absl::flat_hash_map<std::string, int32_t> ids_by_entry;  // as the file spells it
  absl::flat_hash_map<std::string, int32_t> ids_by_bytes;
  std::vector<std::string> token_bytes;  // [V]
  std::vector<bool> used;                // [V]

  absl::Status Put(int32_t id, std::string bytes, absl::string_view where) {
    if (static_cast<size_t>(id) >= token_bytes.size()) {
      token_bytes.resize(static_cast<size_t>(id) + 1);
      used.resize(static_cast<size_t>(id) + 1);
    }
    if (used[id]) return Refuse(where, absl::StrCat("gives id ", id, " to two tokens"));
    used[id] = true;
    token_bytes[id] = std::move(bytes);
    return absl::OkStatus();
  }
};

absl::StatusOr<Vocabulary> ReadVocabulary(const json::object& model) {
  const json::object* entries = ObjectField(&model, "vocab");
  if (entries == nullptr) return Refuse("model.vocab", "is missing");
  Vocabulary vocabulary;
  for (const auto& entry : *entries) {
    const absl::string_view text(entry.key().data(), entry.key().size());
    const absl::StatusOr<int32_t> id =
        CheckedId(entry.value(), absl::StrCat("model.vocab \"", text.substr(0, 64), "\""));
    if (!id.ok()) return id.status();
    std::optional<std::string> bytes = BytesOfEntry(text);
    if (!bytes.has_value() || bytes->empty()) {
      return Refuse(absl::StrCat("model.vocab entry ", *id),
                    "is not spelled in the byte-level alphabet");
    }
    vocabulary.ids_by_entry.emplace(text, *id);
    vocabulary.ids_by_bytes.emplace(*bytes, *id);
    if (absl::Status status = vocabulary.Put(*id, *std::move(bytes), "model.vocab"); !status.ok())
      return status;
  }
  return vocabulary;
}

// The two sides of one merge, "left right" or ["left", "right"]. Empty sides if it is neither.
std::pair<absl::string_view, absl::string_view> SidesOf(const json::value& merge) {
  if (merge.is_string()) {
    const absl::string_view text = View(merge.get_string());
    const size_t space = text.find(' ');
    if (space == absl::string_view::npos) return {};
    return {text.substr(0, space), text.substr(space + 1)};
  }
  const json::array* sides = merge.if_array();
  if (sides == nullptr || sides->size() != 2 || !(*sides)[0].is_string() ||
      !(*sides)[1].is_string())
    return {};
  return {View((*sides)[0].get_string()), View((*sides)[1].get_string())};
}

absl::StatusOr<std::vector<BytePairEncoder::Merge>> ReadMerges(const json::object& model,
                                                               const Vocabulary& vocabulary) {
  const json::value* list = Field(&model, "merges");
  if (list == nullptr || !list->is_array()) return Refuse("model.merges", "is missing");
  std::vector<BytePairEncoder::Merge> merges;
  merges.reserve(list->get_array().size());
  for (const json::value& value : list->get_array()) {
    const auto [left, right] = SidesOf(value);
    const auto left_id = vocabulary.ids_by_entry.find(left);
    const auto right_id = vocabulary.ids_by_entry.find(right);
    const auto merged_id = vocabulary.ids_by_entry.find(absl::StrCat(left, right));
    const auto end = vocabulary.ids_by_entry.end();
    if (left_id == end || right_id == end || merged_id == end) {
      return Refuse(absl::StrCat("model.merges[", merges.size(), "]"),
                    "names something outside the vocabulary");
    }
    merges.push_back({left_id->second, right_id->second, merged_id->second});
  }
  return merges;
}

absl::Status CheckModel(const json::object* model) {
  if (absl::Status status = RequireType(model, "model", "BPE"); !status.ok()) return status;
  for (const absl::string_view key : {"dropout", "unk_token", "continuing_subword_prefix",
                                      "end_of_word_suffix", "fuse_unk", "byte_fallback"}) {
    if (absl::Status status = RequireUnset(*model, "model.", key); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

Tokenizer::Tokenizer() = default;
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(absl::string_view text) {
  if (text.size() > limits::kTokenizerBytesMax) {
    return Refuse("the file", absl::StrCat("has ", text.size(), " bytes; at most ",
                                           limits::kTokenizerBytesMax, " are allowed"));
  }
  json::error_code error;
  const json::value document = json::parse(json::string_view(text.data(), text.size()), error);
  if (error) return Refuse("the file", absl::StrCat("is not JSON: ", error.message()));
  const json::object* root = document.if_object();
  if (root == nullptr) return Refuse("the file", "is not a JSON object");

  const json::object* model = ObjectField(root, "model");
  if (absl::Status status = CheckModel(model); !status.ok()) return status;
  if (absl::Status status = CheckNormalizerAndPostProcessor(*root); !status.ok()) return status;
  const absl::StatusOr<absl::string_view> pattern = SplitPattern(*root);
  if (!pattern.ok()) return pattern.status();
  absl::StatusOr<std::unique_ptr<TextSplitter>> splitter = TextSplitter::Create(*pattern);
  if (!splitter.ok()) return splitter.status();
  absl::StatusOr<Vocabulary> vocabulary = ReadVocabulary(*model);
  if (!vocabulary.ok()) return vocabulary.status();
  const absl::StatusOr<std::vector<BytePairEncoder::Merge>> merges =
      ReadMerges(*model, *vocabulary);
  if (!merges.ok()) return merges.status();

  std::array<int32_t, 256> byte_ids;
  for (int byte = 0; byte < 256; ++byte) {
    const auto id = vocabulary->ids_by_bytes.find(std::string(1, static_cast<char>(byte)));
    if (id == vocabulary->ids_by_bytes.end()) {
      return Refuse("model.vocab", absl::StrCat("has no token for the single byte ", byte));
    }
    byte_ids[byte] = id->second;
  }

  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer());
  absl::flat_hash_set<int32_t> special_ids;
  const json::value* added = Field(root, "added_tokens");
  const json::array no_tokens;
  if (added != nullptr && !added->is_array()) return Refuse("added_tokens", "is not a list");
  for (const json::value& value : added == nullptr ? no_tokens : added->get_array()) {
    const std::string where = absl::StrCat("added_tokens[", tokenizer->added_ids_.size(), "]");
    const json::object* token = value.if_object();
    const absl::string_view content = TextField(token, "content");
    if (content.empty()) return Refuse(where, "has no content");
    const json::value* id_value = Field(token, "id");
    const absl::StatusOr<int32_t> id =
        CheckedId(id_value == nullptr ? json::value() : *id_value, where);
    if (!id.ok()) return id.status();
    for (const absl::string_view key : {"single_word", "lstrip", "rstrip", "normalized"}) {
      if (absl::Status status = RequireUnset(*token, where + ".", key); !status.ok()) return status;
    }
    if (!tokenizer->added_ids_.emplace(content, *id).second)
      return Refuse(where, "repeats an earlier token");
    if (const auto in_model = vocabulary->ids_by_entry.find(content);
        in_model != vocabulary->ids_by_entry.end()) {
      if (in_model->second != *id) return Refuse(where, "has another id in model.vocab");
      vocabulary->ids_by_bytes.erase(vocabulary->token_bytes[*id]);  // no text may become it
      vocabulary->token_bytes[*id] = std::string(content);
    } else if (absl::Status status = vocabulary->Put(*id, std::string(content), where);
               !status.ok()) {
      return status;
    }
    const json::value* special = Field(token, "special");
    if (special != nullptr && special->is_bool() && special->get_bool()) special_ids.insert(*id);
    tokenizer->added_by_first_byte_[static_cast<uint8_t>(content[0])].push_back(
        {std::string(content), *id});
  }
  for (const auto& [content, id] : tokenizer->added_ids_) {
    const bool merges_to_it =
        std::any_of(merges->begin(), merges->end(),
                    [id = id](const auto& merge) { return merge.merged == id; });
    const bool is_byte = std::find(byte_ids.begin(), byte_ids.end(), id) != byte_ids.end();
    if (merges_to_it || is_byte) {
      return Refuse(absl::StrCat("added token ", id), "is also what ordinary text can become");
    }
  }
  for (auto& tokens : tokenizer->added_by_first_byte_) {
    std::sort(tokens.begin(), tokens.end(), [](const AddedToken& a, const AddedToken& b) {
      return a.text.size() > b.text.size();
    });
  }

  const json::value* ignore_merges = Field(model, "ignore_merges");
  tokenizer->encoder_ = std::make_unique<BytePairEncoder>(
      byte_ids, *merges, vocabulary->ids_by_bytes,
      ignore_merges != nullptr && ignore_merges->is_bool() && ignore_merges->get_bool());
  tokenizer->splitter_ = *std::move(splitter);
  tokenizer->token_bytes_ = std::move(vocabulary->token_bytes);
  tokenizer->is_special_.assign(tokenizer->token_bytes_.size(), false);
  for (const int32_t id : special_ids) tokenizer->is_special_[id] = true;
  return tokenizer;
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(absl::string_view text,
                                                       SpecialTokens special) const {
  if (text.size() > limits::kPromptBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("text has ", text.size(), " bytes; at most ",
                                                   limits::kPromptBytesMax, " are allowed"));
  }
  if (const size_t offset = FirstInvalidByte(text); offset != text.size()) {
    return absl::InvalidArgumentError(absl::StrCat("text is not UTF-8 at byte ", offset));
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 1);
  size_t begin = 0;  // of the text not yet encoded
  if (special == SpecialTokens::kParse) {
    for (size_t i = 0; i < text.size();) {
      const AddedToken* token = AddedTokenAt(text, i);
      if (token == nullptr) {
        ++i;
        continue;
      }
      if (absl::Status status = EncodeText(text.substr(begin, i - begin), &ids); !status.ok())
        return status;
      ids.push_back(token->id);
      i += token->text.size();
      begin = i;
    }
  }
  if (absl::Status status = EncodeText(text.substr(begin), &ids); !status.ok()) return status;
  return ids;
}

absl::Status Tokenizer::EncodeText(absl::string_view text, std::vector<int32_t>* ids) const {
  const auto encode_piece = [&](absl::string_view piece) { encoder_->Encode(piece, ids); };
  if (IsQuicklyNfc(text)) return splitter_->Split(text, encode_piece);
  const std::string nfc = ToNfc(text);
  return splitter_->Split(nfc, encode_piece);
}

const Tokenizer::AddedToken* Tokenizer::AddedTokenAt(absl::string_view text, size_t offset) const {
  for (const AddedToken& token : added_by_first_byte_[static_cast<uint8_t>(text[offset])]) {
    if (absl::StartsWith(text.substr(offset), token.text)) return &token;
  }
  return nullptr;
}

absl::string_view Tokenizer::TokenBytes(int32_t id) const {
  return id < 0 || id >= vocabulary_size() ? absl::string_view() : token_bytes_[id];
}

absl::StatusOr<int32_t> Tokenizer::TokenId(absl::string_view special_text) const {
  const auto it = added_ids_.find(special_text);
  if (it == added_ids_.end()) {
    return absl::NotFoundError(
        absl::StrCat("the tokenizer has no added token \"", special_text, "\""));
  }
  return it->second;
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocabulary_size() && is_special_[id];
}

}  // namespace ultraspeed::router
