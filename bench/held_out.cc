#include "bench/held_out.h"

#include <boost/json.hpp>
#include <fstream>
#include <functional>
#include <memory>
#include <sstream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/chat_template.h"
#include "router/tokenizer.h"

namespace ultraspeed::bench {
namespace {

namespace json = boost::json;

absl::StatusOr<std::unique_ptr<router::Tokenizer>> LoadTokenizer(const std::string& model_folder) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(model_folder + "/tokenizer.json"));
  return router::Tokenizer::Create(text);
}

// Calls `use` with each line's JSON value; a parse failure or a missing member becomes
// INVALID_ARGUMENT with file and line.
absl::Status ForEachLine(const std::string& path,
                         const std::function<absl::Status(const json::value&)>& use) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  std::istringstream lines(text);
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.empty()) continue;
    try {
      RETURN_IF_ERROR(use(json::parse(line)));
    } catch (const std::exception& e) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": ", e.what()));
    }
  }
  return absl::OkStatus();
}

std::string String(const json::value& object, const char* key) {
  return std::string(object.at(key).as_string());
}

router::ChatTurn ParseTurn(const json::value& message) {
  static const std::pair<const char*, router::ChatRole> kRoles[] = {
      {"system", router::ChatRole::kSystem},
      {"user", router::ChatRole::kUser},
      {"assistant", router::ChatRole::kAssistant},
      {"tool", router::ChatRole::kTool}};
  router::ChatTurn turn;
  turn.content = String(message, "content");
  const std::string role = String(message, "role");
  for (const auto& [name, value] : kRoles) {
    if (role == name) turn.role = value;
  }
  return turn;
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

absl::StatusOr<std::vector<HeldOutPrompt>> LoadHeldOutPrompts(const std::string& model_folder,
                                                              const worker::ModelConfig& config) {
  ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(model_folder));
  ASSIGN_OR_RETURN(const router::ChatTemplate chat_template,
                   router::ChatTemplate::Create("mimo_v2", *tokenizer));
  std::vector<HeldOutPrompt> prompts;
  RETURN_IF_ERROR(ForEachLine(
      model_folder + "/heldout/code.jsonl", [&](const json::value& line) -> absl::Status {
        ASSIGN_OR_RETURN(auto tokens,
                         tokenizer->Encode(String(line, "prompt"), router::SpecialTokens::kAsText));
        prompts.push_back({String(line, "id"), false, std::move(tokens)});
        return absl::OkStatus();
      }));
  RETURN_IF_ERROR(ForEachLine(
      model_folder + "/heldout/chat.jsonl", [&](const json::value& line) -> absl::Status {
        std::vector<router::ChatTurn> turns;
        for (const json::value& message : line.at("messages").as_array())
          turns.push_back(ParseTurn(message));
        const auto segments = chat_template.Segments(turns, config.enable_thinking_default);
        ASSIGN_OR_RETURN(auto tokens, router::EncodeSegments(*tokenizer, segments));
        prompts.push_back({String(line, "id"), true, std::move(tokens)});
        return absl::OkStatus();
      }));
  return prompts;
}

absl::StatusOr<std::vector<HeldOutPrompt>> LoadPromptFile(const std::string& model_folder,
                                                          const std::string& path) {
  ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(model_folder));
  std::vector<HeldOutPrompt> prompts;
  RETURN_IF_ERROR(ForEachLine(path, [&](const json::value& line) -> absl::Status {
    const bool is_object = line.is_object();
    const std::string prompt = is_object ? String(line, "prompt") : std::string(line.as_string());
    ASSIGN_OR_RETURN(auto tokens, tokenizer->Encode(prompt, router::SpecialTokens::kAsText));
    prompts.push_back({absl::StrCat("prompt-", prompts.size()), false, std::move(tokens)});
    return absl::OkStatus();
  }));
  return prompts;
}

std::vector<std::vector<int32_t>> Stretches(const std::vector<int32_t>& tokens, size_t count,
                                            size_t again) {
  constexpr size_t kStretches = 32;
  std::vector<std::vector<int32_t>> stretches;
  if (tokens.size() < count + kStretches) return stretches;
  const size_t step = (tokens.size() - count) / kStretches;
  for (size_t i = 0; i < kStretches; ++i) {
    const auto begin = tokens.begin() + static_cast<ptrdiff_t>(i * step);
    std::vector<int32_t>& stretch =
        stretches.emplace_back(begin, begin + static_cast<ptrdiff_t>(count));
    stretch.insert(stretch.end(), begin, begin + static_cast<ptrdiff_t>(again));
  }
  return stretches;
}

absl::StatusOr<std::vector<int32_t>> TokenizeText(const std::string& model_folder,
                                                  const std::string& text) {
  ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(model_folder));
  return tokenizer->Encode(text, router::SpecialTokens::kAsText);
}

}  // namespace ultraspeed::bench
