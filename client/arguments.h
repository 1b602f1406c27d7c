// The command line of `ultraspeed` as plain values and as generation options. Called by main before
// anything else runs.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/tls.h"
#include "ultraspeed/v1/inference.pb.h"

namespace ultraspeed::client {

enum class Command { kGenerate, kChat, kModels, kTokenize };

struct Arguments {
  Command command = Command::kGenerate;
  std::string server = "127.0.0.1:50051";
  std::string api_key;
  std::string model;               // empty: the only model that the server has
  std::string file;                // prompt from there; "-" is standard input
  std::string system;              // chat only
  std::vector<std::string> words;  // positional: the prompt
  v1::GenerateOptions options;
  std::optional<bool> enable_thinking;
  bool parse_special = false;  // tokenize only
  bool json = false;
  bool stream_json = false;
  bool stats_json = false;
  absl::Duration deadline = absl::ZeroDuration();  // zero: none
  absl::Duration wait = absl::ZeroDuration();
  TlsOptions tls;
};

// nullopt: help was asked for and printed. INVALID_ARGUMENT names the flag.
absl::StatusOr<std::optional<Arguments>> ParseArguments(int argc, const char* const* argv);

// Prompt text: the words, the file, or standard input.
absl::StatusOr<std::string> ReadPrompt(const Arguments& arguments);

}  // namespace ultraspeed::client
