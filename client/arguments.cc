#include "client/arguments.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/config.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace ultraspeed::client {
namespace {

constexpr char kUsage[] =
    "ultraspeed: text from an UltraSpeed server.\n\n"
    "  ultraspeed generate [flags] [PROMPT]   continue a prompt\n"
    "  ultraspeed chat     [flags] [MESSAGE]  answer a message; without one, on a terminal, "
    "converse\n"
    "  ultraspeed models   [flags]            what the server offers\n"
    "  ultraspeed tokenize [flags] [TEXT]     token ids of a text\n"
    "  ultraspeed admin ..                    tenants, keys, prices, usage, audit; see `ultraspeed "
    "admin`\n\n"
    "`ultraspeed COMMAND --help` lists the flags. Exit status: 0 done, 1 other, 2 usage, 3 invalid "
    "argument, 4 not authenticated\n"
    "or permitted, 5 not found, 6 exhausted, 7 unavailable, 8 deadline, 130 interrupted.\n";

// Optional numbers stay text until it is known whether they were given: zero is a value, absence is
// another.
struct OptionalFlags {
  std::string max_tokens, temperature, top_p, top_k, seed, logprobs;
  std::string stop;  // for --help only; see TakeRepeated
  std::string tier;
  std::string thinking;
  bool speculation = true;
  bool ignore_eos = false;
  std::string client_request_id;
  bool json_object = false;
  std::string json_schema;
};

absl::Status ParseInt32(const char* name, const std::string& text, int32_t* value) {
  if (absl::SimpleAtoi(text, value)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--", name, "=", text, ": must be a whole number in ",
                   std::numeric_limits<int32_t>::min(), "..", std::numeric_limits<int32_t>::max()));
}

absl::Status ParseFloat(const char* name, const std::string& text, float* value) {
  if (absl::SimpleAtof(text, value)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", name, "=", text, ": must be a number"));
}

absl::Status FillOutputFormat(const OptionalFlags& flags, v1::GenerateOptions* options) {
  if (flags.json_object && !flags.json_schema.empty())
    return absl::InvalidArgumentError("--json-object and --json-schema: only one of the two");
  if (flags.json_object) options->mutable_output_format()->set_json_object(true);
  if (flags.json_schema.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(std::string schema,
                   ReadFile(flags.json_schema, limits::kSchemaBytesMax, "--json-schema"));
  if (schema.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--json-schema=", flags.json_schema, ": the file is empty"));
  }
  options->mutable_output_format()->set_json_schema(std::move(schema));
  return absl::OkStatus();
}

absl::Status FillOptions(const OptionalFlags& flags, std::vector<std::string> stop,
                         v1::GenerateOptions* options) {
  int32_t whole = 0;
  float real = 0;
  v1::SamplingParams* sampling = options->mutable_sampling();
  if (!flags.max_tokens.empty()) {
    RETURN_IF_ERROR(ParseInt32("max-tokens", flags.max_tokens, &whole));
    options->set_max_tokens(whole);
  }
  if (!flags.temperature.empty()) {
    RETURN_IF_ERROR(ParseFloat("temperature", flags.temperature, &real));
    sampling->set_temperature(real);
  }
  if (!flags.top_p.empty()) {
    RETURN_IF_ERROR(ParseFloat("top-p", flags.top_p, &real));
    sampling->set_top_p(real);
  }
  if (!flags.top_k.empty()) {
    RETURN_IF_ERROR(ParseInt32("top-k", flags.top_k, &whole));
    sampling->set_top_k(whole);
  }
  if (!flags.seed.empty()) {
    uint64_t seed = 0;
    if (!absl::SimpleAtoi(flags.seed, &seed)) {
      return absl::InvalidArgumentError(absl::StrCat("--seed=", flags.seed,
                                                     ": must be a whole number in 0..",
                                                     std::numeric_limits<uint64_t>::max()));
    }
    sampling->set_seed(seed);
  }
  if (!flags.logprobs.empty()) {
    RETURN_IF_ERROR(ParseInt32("logprobs", flags.logprobs, &whole));
    options->set_logprobs(whole);
  }
  for (std::string& text : stop) options->add_stop(std::move(text));
  if (flags.tier == "auto") options->set_service_tier(v1::SERVICE_TIER_AUTO);
  if (flags.tier == "standard") options->set_service_tier(v1::SERVICE_TIER_STANDARD);
  if (flags.tier == "ultraspeed") options->set_service_tier(v1::SERVICE_TIER_ULTRASPEED);
  if (!flags.speculation) options->set_speculation(false);
  options->set_ignore_eos(flags.ignore_eos);
  options->set_client_request_id(flags.client_request_id);
  return FillOutputFormat(flags, options);
}

// Takes every --name VALUE and --name=VALUE out of `words`; values may hold commas and C escapes.
absl::StatusOr<std::vector<std::string>> TakeRepeated(const std::string& name,
                                                      std::vector<std::string>* words) {
  const std::string flag = "--" + name;
  std::vector<std::string> values, rest;
  for (size_t i = 0; i < words->size(); ++i) {
    const std::string& word = (*words)[i];
    if (word == "--") {
      rest.insert(rest.end(), words->begin() + static_cast<int64_t>(i), words->end());
      break;
    }
    std::string raw;
    if (word == flag && i + 1 < words->size()) {
      raw = (*words)[++i];
    } else if (absl::StartsWith(word, flag + "=")) {
      raw = word.substr(flag.size() + 1);
    } else {
      rest.push_back(word);
      continue;
    }
    std::string value, error;
    if (!absl::CUnescape(raw, &value, &error)) {
      return absl::InvalidArgumentError(absl::StrCat(flag, "=", raw, ": ", error));
    }
    values.push_back(std::move(value));
  }
  *words = std::move(rest);
  return values;
}

std::optional<Command> ParseCommand(const std::string& word) {
  if (word == "generate") return Command::kGenerate;
  if (word == "chat") return Command::kChat;
  if (word == "models") return Command::kModels;
  if (word == "tokenize") return Command::kTokenize;
  return std::nullopt;
}

void AddFlags(FlagTable& table, Arguments* arguments, OptionalFlags* optional) {
  table.String("server", &arguments->server, "host:port", "The router");
  table.String("api-key", &arguments->api_key, "key",
               "Better in the environment: ULTRASPEED_API_KEY");
  table.Duration("wait", &arguments->wait,
                 "Ask again so long while the server or its model is not there yet");
  table.Duration("deadline", &arguments->deadline, "Of the whole call; 0 = none");
  AddTlsFlags(table, "", "the connection", &arguments->tls);
  table.Bool("json", &arguments->json, "Print one JSON object at the end instead of text");
  if (arguments->command == Command::kModels) return;
  table.String("model", &arguments->model, "name",
               "Which model; none = the only one that the server has");
  table.String("file", &arguments->file, "path", "Read the prompt from there; - is standard input");
  if (arguments->command == Command::kTokenize) {
    table.Bool("parse-special", &arguments->parse_special, "The text may spell special tokens");
    return;
  }
  table.Bool("stream-json", &arguments->stream_json,
             "Print one JSON object per chunk instead of text");
  table.Bool("stats-json", &arguments->stats_json,
             "Print the statistics as JSON, the last line of standard output");
  table.String("max-tokens", &optional->max_tokens, "tokens",
               "At most so many; none = to the end of the context");
  table.String("temperature", &optional->temperature, "0..2",
               "0 is greedy; none = the model's own");
  table.String("top-p", &optional->top_p, "0..1",
               "Sample from so much probability; none = the model's own");
  table.String("top-k", &optional->top_k, "tokens", "Sample from so many tokens; 0 = off");
  table.String("seed", &optional->seed, "number",
               "Repeats a sampled text; none = drawn and reported");
  table.String("stop", &optional->stop, "text",
               "End before this text; may be repeated, C escapes are understood");
  table.Choice("tier", &optional->tier, {"auto", "standard", "ultraspeed"}, "Service tier");
  table.Bool("speculation", &optional->speculation,
             "Draft and verify blocks of tokens; the text is the same without");
  table.Bool("ignore-eos", &optional->ignore_eos, "Go on past the end of the text (benchmarks)");
  table.String("logprobs", &optional->logprobs, "0..8",
               "Log-probabilities and so many alternatives; see the JSON forms");
  table.String("client-request-id", &optional->client_request_id, "label",
               "Shown in the server's log");
  table.Bool("json-object", &optional->json_object, "The text is some JSON object");
  table.String("json-schema", &optional->json_schema, "path",
               "The text is JSON that keeps to the JSON Schema in this file");
  if (arguments->command != Command::kChat) return;
  table.String("system", &arguments->system, "text", "System message");
  table.Choice("thinking", &optional->thinking, {"on", "off"},
               "Let the model think first; none = the model's own");
}

}  // namespace

absl::StatusOr<std::optional<Arguments>> ParseArguments(int argc, const char* const* argv) {
  const std::string word = argc > 1 ? argv[1] : "--help";
  if (word == "--help" || word == "-h" || word == "help") {
    std::cout << kUsage;
    return std::nullopt;
  }
  const std::optional<Command> command = ParseCommand(word);
  if (!command)
    return absl::InvalidArgumentError(
        absl::StrCat("unknown command ", word, "; see ultraspeed --help"));
  Arguments arguments;
  arguments.command = *command;
  OptionalFlags optional;
  FlagTable table(absl::StrCat("ultraspeed ", word), "Text from an UltraSpeed server.");
  AddFlags(table, &arguments, &optional);
  if (*command != Command::kModels)
    table.Positional("TEXT", &arguments.words, "The prompt; without it and --file, standard input");
  std::vector<std::string> words(argv + 1, argv + argc);
  ASSIGN_OR_RETURN(std::vector<std::string> stop, TakeRepeated("stop", &words));
  std::vector<const char*> pointers;
  for (const std::string& one : words) pointers.push_back(one.c_str());
  ASSIGN_OR_RETURN(const ParseOutcome outcome,
                   table.Parse(static_cast<int>(pointers.size()), pointers.data()));
  if (outcome == ParseOutcome::kHelp) {
    std::cout << table.Help();
    return std::nullopt;
  }
  if (!optional.stop.empty()) stop.push_back(optional.stop);  // from --config
  RETURN_IF_ERROR(FillOptions(optional, std::move(stop), &arguments.options));
  if (!optional.thinking.empty()) arguments.enable_thinking = optional.thinking == "on";
  if (arguments.api_key.empty()) {
    const char* from_environment = std::getenv("ULTRASPEED_API_KEY");
    if (from_environment != nullptr) arguments.api_key = from_environment;
  }
  // gRPC ends the process over a header that is none.
  const auto odd = std::find_if_not(arguments.api_key.begin(), arguments.api_key.end(), [](char c) {
    return absl::ascii_isgraph(static_cast<unsigned char>(c));
  });
  if (odd != arguments.api_key.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--api-key, or ULTRASPEED_API_KEY, has the byte ",
                     static_cast<int>(static_cast<unsigned char>(*odd)), " at ",
                     odd - arguments.api_key.begin(), "; it must be visible ASCII"));
  }
  if (arguments.json && arguments.stream_json) {
    return absl::InvalidArgumentError("--json and --stream-json: only one of the two");
  }
  return arguments;
}

absl::StatusOr<std::string> ReadPrompt(const Arguments& arguments) {
  if (!arguments.words.empty() && arguments.words != std::vector<std::string>{"-"}) {
    if (!arguments.file.empty())
      return absl::InvalidArgumentError("--file and a prompt argument: only one of the two");
    return absl::StrJoin(arguments.words, " ");
  }
  if (!arguments.file.empty() && arguments.file != "-")
    return ReadFile(arguments.file, limits::kPromptBytesMax, "file");
  std::string text(std::istreambuf_iterator<char>(std::cin), {});
  if (text.size() > limits::kPromptBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("standard input: ", text.size(), " bytes, at most ", limits::kPromptBytesMax));
  }
  return text;
}

}  // namespace ultraspeed::client
