// ultraspeed-eval: how good a checkpoint is. Bits per byte of its held-out text, and how many
// tokens its drafter wins per round.
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <cstdio>
#include <iomanip>
#include <iostream>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "bench/decode_loop.h"
#include "bench/held_out.h"
#include "common/status_macros.h"
#include "worker/device.h"

ABSL_FLAG(std::string, model, "models/tiny-mimo", "checkpoint folder");
ABSL_FLAG(std::string, text, "", "text file to score; empty = the folder's heldout/text.txt");
ABSL_FLAG(int, window, 1024, "tokens of context that each stretch of text is scored in");
ABSL_FLAG(int, max_tokens, 128,
          "completion tokens per prompt for the acceptance figures; 0 = skip them");
ABSL_FLAG(std::string, device, "auto", "auto, cpu or cuda");
ABSL_FLAG(int, threads, 0, "compute threads; 0 = one for each core that the process may use");
ABSL_FLAG(bool, json, false, "one JSON object instead of a table");

namespace ultraspeed::bench {
namespace {

constexpr int kRowsPerPass = 128;
constexpr uint64_t kSeed = 20261123;

// -log2 of the probability of `token` under softmax(logits) over the whole vocabulary.
double BitsOf(const float* logits, int vocabulary, int32_t token) {
  const float top = *std::max_element(logits, logits + vocabulary);
  double sum = 0;
  for (int i = 0; i < vocabulary; ++i) sum += std::exp(static_cast<double>(logits[i]) - top);
  return (std::log(sum) - (static_cast<double>(logits[token]) - top)) / std::log(2.0);
}

// Bits of tokens[1..] of one window, each given those before it.
double BitsOfWindow(worker::ModelExecutor& executor, const std::vector<int32_t>& tokens) {
  std::vector<int32_t> pages(executor.num_pages());
  std::iota(pages.begin(), pages.end(), 0);
  executor.ResetSlot(0);
  const int vocabulary = executor.config().vocabulary;
  std::vector<float> logits(static_cast<size_t>(kRowsPerPass) * vocabulary);
  double bits = 0;
  for (size_t begin = 0; begin + 1 < tokens.size(); begin += kRowsPerPass) {
    const size_t end = std::min(tokens.size() - 1, begin + kRowsPerPass);
    worker::SequenceStep step;
    step.computed = static_cast<int64_t>(begin);
    step.tokens = &tokens[begin];
    step.num_tokens = static_cast<int>(end - begin);
    step.pages = pages.data();
    step.num_pages = static_cast<int>(pages.size());
    executor.Logits(step, logits.data());
    for (size_t i = begin; i < end; ++i) {
      bits += BitsOf(logits.data() + (i - begin) * vocabulary, vocabulary, tokens[i + 1]);
    }
  }
  return bits;
}

std::vector<std::vector<int32_t>> OfKind(const std::vector<HeldOutPrompt>& prompts, bool chat) {
  std::vector<std::vector<int32_t>> texts;
  for (const HeldOutPrompt& prompt : prompts) {
    if (prompt.is_chat == chat) texts.push_back(prompt.tokens);
  }
  return texts;
}

double TokensPerRound(worker::ModelExecutor& executor,
                      const std::vector<std::vector<int32_t>>& prompts, float temperature) {
  DecodeOptions options;
  options.max_tokens = absl::GetFlag(FLAGS_max_tokens);
  options.block = std::max(1, executor.config().drafter.block_size);
  options.sampling.temperature = temperature;
  options.sampling.seed = kSeed;
  const DecodeOutcome outcome = Decode(executor, prompts, options);
  return outcome.sequence_rounds == 0
             ? 0
             : static_cast<double>(outcome.tokens) / outcome.sequence_rounds;
}

absl::Status RunEval() {
  const std::string folder = absl::GetFlag(FLAGS_model);
  const int window = absl::GetFlag(FLAGS_window);
  worker::ExecutorOptions executor_options;
  executor_options.model_folder = folder;
  executor_options.num_threads = absl::GetFlag(FLAGS_threads);
  executor_options.max_sequences = 1;
  executor_options.kv_tokens = 8192;
  ASSIGN_OR_RETURN(const worker::DeviceChoice choice,
                   worker::ChooseDevice(absl::GetFlag(FLAGS_device)));
  ASSIGN_OR_RETURN(const auto executor, worker::CreateExecutor(choice.device, executor_options));
  if (window < 2 || window > executor->config().context_tokens ||
      window > executor_options.kv_tokens) {
    return absl::InvalidArgumentError("--window must be between 2 and the model's context");
  }

  const std::string text_path =
      absl::GetFlag(FLAGS_text).empty() ? folder + "/heldout/text.txt" : absl::GetFlag(FLAGS_text);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(text_path));
  ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, TokenizeText(folder, text));
  if (tokens.size() < 2)
    return absl::InvalidArgumentError(text_path + ": needs at least two tokens");

  // Windows share their border token: the last token of one is the first, given, token of the next.
  double bits = 0;
  for (size_t begin = 0; begin + 1 < tokens.size(); begin += window - 1) {
    const size_t end = std::min(tokens.size(), begin + window);
    bits += BitsOfWindow(*executor, {tokens.begin() + begin, tokens.begin() + end});
    if (isatty(STDERR_FILENO)) std::fprintf(stderr, "\rscoring %3zu %%", 100 * end / tokens.size());
  }
  if (isatty(STDERR_FILENO)) std::fprintf(stderr, "\r%20s\r", "");

  boost::json::object report = {{"model", executor->config().name},
                                {"bits_per_byte", bits / text.size()},
                                {"bits_per_token", bits / (tokens.size() - 1)},
                                {"bytes", text.size()},
                                {"tokens", tokens.size()}};
  if (absl::GetFlag(FLAGS_max_tokens) > 1) {
    ASSIGN_OR_RETURN(const auto prompts, LoadHeldOutPrompts(folder, executor->config()));
    const std::pair<const char*, std::vector<std::vector<int32_t>>> kinds[] = {
        {"code", OfKind(prompts, false)},
        {"chat", OfKind(prompts, true)},
        {"long", Stretches(tokens, kLongStretch, /*again=*/0)}};
    for (const auto& [kind, texts] : kinds) {
      const std::string name = absl::StrCat("tokens_per_round_", kind);
      report[name + "_greedy"] = TokensPerRound(*executor, texts, 0);
      report[name + "_temperature_1"] = TokensPerRound(*executor, texts, 1);
    }
  }
  if (absl::GetFlag(FLAGS_json)) {
    std::cout << report << std::endl;
  } else {
    for (const auto& entry : report)
      std::cout << std::left << std::setw(38) << std::string(entry.key()) << entry.value() << "\n";
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace ultraspeed::bench

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "scores a checkpoint.\n  ultraspeed-eval [--model DIR] [--text FILE] [--json]");
  if (absl::ParseCommandLine(argc, argv).size() != 1) {
    std::cerr << "usage: ultraspeed-eval [--help for the flags]" << std::endl;
    return 2;
  }
  const absl::Status status = ultraspeed::bench::RunEval();
  if (!status.ok()) {
    std::cerr << "ultraspeed-eval: " << status.message() << std::endl;
    return status.code() == absl::StatusCode::kInvalidArgument ? 2 : 1;
  }
  return 0;
}
