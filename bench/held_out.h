// The prompts that come with a checkpoint, as token ids.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model/config.h"

namespace ultraspeed::bench {

struct HeldOutPrompt {
  std::string id;
  bool is_chat = false;
  std::vector<int32_t> tokens;
};

absl::StatusOr<std::string> ReadFile(const std::string& path);

// heldout/code.jsonl ({"id","prompt"}) and heldout/chat.jsonl ({"id","messages"}) of a model
// folder. NOT_FOUND or INVALID_ARGUMENT names file and line.
absl::StatusOr<std::vector<HeldOutPrompt>> LoadHeldOutPrompts(const std::string& model_folder,
                                                              const worker::ModelConfig& config);

// A file with one prompt a line: a JSON string, or an object with "prompt".
absl::StatusOr<std::vector<HeldOutPrompt>> LoadPromptFile(const std::string& model_folder,
                                                          const std::string& path);

// 32 stretches of `tokens`, evenly spread, of `count` each and then the first `again` of it once
// more, as somebody begins who writes a file anew with changes. None if there are too few tokens.
std::vector<std::vector<int32_t>> Stretches(const std::vector<int32_t>& tokens, size_t count,
                                            size_t again);
// Stretches that are longer than any of the prompts, and ones that begin again.
inline constexpr size_t kLongStretch = 1024, kRepeatedStretch = 768, kRepeated = 192;

// Token ids of a text, specials inert.
absl::StatusOr<std::vector<int32_t>> TokenizeText(const std::string& model_folder,
                                                  const std::string& text);

}  // namespace ultraspeed::bench
