// ultraspeed-bench: measures, and states every figure beside its physical bound.
//   serving  load on a running router from many tenants at once
//   http     a running router's HTTP beside its gRPC, request by request
//   load     a checkpoint's way from its files to an executor, beside raw reads of the same files
//   decode   plain and speculative decoding of held-out prompts, straight on the executor
//   rank     rounds at the served model's shape, the share of one GPU or of several, with made-up
//            weights
//   grammar  what holding an output to a format costs the host
//   allreduce  sums over the GPUs of a node: right, and how fast
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <iomanip>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "bench/allreduce_bench.h"
#include "bench/decode_loop.h"
#include "bench/grammar_bench.h"
#include "bench/held_out.h"
#include "bench/load_bench.h"
#include "bench/model_vocabulary.h"
#include "bench/rank_bench.h"
#include "bench/read_bandwidth.h"
#include "bench/serving_command.h"
#include "common/clock.h"
#include "common/grammar/constraint.h"
#include "common/grammar/json_schema.h"
#include "common/status_macros.h"
#include "kernels/ops.h"
#include "kernels/usable_cores.h"
#include "worker/calibration.h"
#include "worker/cuda/device.h"
#include "worker/device.h"

ABSL_FLAG(std::string, model, "models/tiny-mimo", "checkpoint folder");
ABSL_FLAG(std::string, device, "auto", "auto, cpu or cuda");
ABSL_FLAG(int, gpus, 1,
          "GPUs that share the model; decode and load on a CPU: ranks in one process");
ABSL_FLAG(int64_t, calls, 100000, "allreduce: sums that are checked");
ABSL_FLAG(std::string, prompts, "held-out",
          "decode: held-out (the folder's own prompts), long (1,024 tokens of its held-out text), "
          "repeats (768 of them and the first 192 again), or a file with one JSON prompt a line");
ABSL_FLAG(int, max_tokens, 128, "completion tokens per prompt");
ABSL_FLAG(int, threads, 0, "compute threads; 0 = one for each core that the process may use");
ABSL_FLAG(std::string, instruction_set, "",
          "decode: scalar, avx2, avx512, avx512_bf16 or amx_bf16; empty = the best of this CPU");
ABSL_FLAG(std::string, drafter_precision, "auto",
          "decode on a CPU: how the drafter's weights are held: auto, bf16 or fp8");
ABSL_FLAG(double, temperature, 0, "decode, rank: 0 = greedy");
ABSL_FLAG(int, top_k, 0, "decode, rank: the most likely tokens that may be drawn; 0 = all");
ABSL_FLAG(double, top_p, 1, "decode, rank: their share of the probability; 1 = all");
ABSL_FLAG(std::string, output_format, "none",
          "decode: what every completion is held to: none, or json_object for any JSON object");
ABSL_FLAG(std::string, schema, "", "grammar: a file with a JSON Schema; empty = an example");
ABSL_FLAG(int, texts, ultraspeed::bench::GrammarBenchOptions().texts,
          "grammar: random texts of each grammar");
ABSL_FLAG(bool, lookup_drafts, true,
          "decode: drafts what followed in the text where a sequence repeats it");
ABSL_FLAG(std::string, blocks, "whole",
          "decode: whole blocks in every speculative round, or chosen, as a worker does by what "
          "drafting costs and brings");
ABSL_FLAG(int, repeats, 3, "passes over the prompts; the median pass is reported");
ABSL_FLAG(std::string, shape, "mimo-v2.5-pro", "rank: the model's shape");
ABSL_FLAG(int, rank_of, 8, "rank: GPUs that the shape is divided over");
ABSL_FLAG(int, markov_rank, 0,
          "rank: gives the drafter a gated Markov head of this rank, a multiple of 32");
ABSL_FLAG(int64_t, context, 4096, "rank: tokens before the timed rounds");
ABSL_FLAG(int, prefill, 2048, "rank: rows of one prefill pass");
ABSL_FLAG(int, rounds, 50, "rank: timed rounds");
ABSL_FLAG(int, distinct_experts, 60,
          "rank: experts a layer that a round reads; 59.5 is the mean of uniform routing");
ABSL_FLAG(int, sequences, 1,
          "decode: prompts side by side; rank: also rounds of 2 up to so many sequences");
ABSL_FLAG(double, tokens_per_round, 6.3, "rank: acceptance that tokens/s are stated for");
ABSL_FLAG(std::string, trace, "", "rank: writes a Perfetto timeline of one resident round here");
ABSL_FLAG(bool, kv_fp8, false, "rank: keys and values in FP8 instead of BF16");
ABSL_FLAG(int, read_threads, ultraspeed::worker::ReadOptions().threads,
          "load: threads that read the files; 0 = mapped pages");
ABSL_FLAG(bool, stream_only, false, "load: read and check, but make no executor");
ABSL_FLAG(std::string, experts, "as-stored", "load: as-stored, or mxfp4 to round FP8 experts");
ABSL_FLAG(std::string, weights_cache, "",
          "load: a folder for packed weights, which are written and read back; cuda only");
ABSL_FLAG(bool, json, false, "one JSON object instead of a table");

namespace ultraspeed::bench {
namespace {

constexpr uint64_t kSeed = 20261123;
constexpr size_t kDramBufferBytes = size_t{1} << 30;  // far beyond every cache

// The ceiling of the device that was measured, with as many threads as its executor had.
double ReadBandwidth(worker::Device device, size_t bytes) {
  if (device == worker::Device::kCuda) {  // all GPUs read their parts at once
    const int gpus = std::max(1, absl::GetFlag(FLAGS_gpus));
    return gpus * worker::MeasureDeviceReadBandwidth(bytes / static_cast<size_t>(gpus));
  }
  const int threads =
      absl::GetFlag(FLAGS_threads) > 0 ? absl::GetFlag(FLAGS_threads) : kernels::NumUsableCores();
  return MeasureReadBandwidth(bytes, threads);
}

absl::StatusOr<kernels::SamplingSpec> Sampling() {
  const int top_k = absl::GetFlag(FLAGS_top_k);
  const double top_p = absl::GetFlag(FLAGS_top_p);
  if (top_k < 0)
    return absl::InvalidArgumentError(absl::StrCat("--top_k: is ", top_k, "; must be at least 0"));
  if (!(top_p > 0 && top_p <= 1))
    return absl::InvalidArgumentError(absl::StrCat("--top_p: is ", top_p, "; must be in (0, 1]"));
  return kernels::SamplingSpec{.temperature = static_cast<float>(absl::GetFlag(FLAGS_temperature)),
                               .top_k = top_k,
                               .top_p = static_cast<float>(top_p),
                               .seed = kSeed};
}

double TokensPerSecond(const DecodeOutcome& pass) {
  return static_cast<double>(pass.tokens) / pass.seconds;
}

DecodeOutcome RunPass(worker::ModelExecutor& executor,
                      const std::vector<std::vector<int32_t>>& prompts, DecodeOptions options,
                      const std::string& label) {
  const bool shows_progress = isatty(STDERR_FILENO) != 0;
  options.on_prompt_started = [&](size_t i) {
    if (shows_progress)
      std::fprintf(stderr, "\r%-28s %zu/%zu", label.c_str(), i + 1, prompts.size());
  };
  DecodeOutcome outcome = Decode(executor, prompts, options);
  if (shows_progress) std::fprintf(stderr, "\r%60s\r", "");
  return outcome;
}

DecodeOutcome MedianPass(std::vector<DecodeOutcome> passes) {
  std::sort(passes.begin(), passes.end(),
            [](const DecodeOutcome& a, const DecodeOutcome& b) { return a.seconds < b.seconds; });
  return passes[passes.size() / 2];
}

void Print(const boost::json::object& report) {
  if (absl::GetFlag(FLAGS_json)) {
    std::cout << report << std::endl;
    return;
  }
  for (const auto& entry : report)
    std::cout << std::left << std::setw(38) << std::string(entry.key()) << entry.value() << "\n";
}

absl::StatusOr<worker::DeviceChoice> ChosenDevice() {
  ASSIGN_OR_RETURN(worker::DeviceChoice choice, worker::ChooseDevice(absl::GetFlag(FLAGS_device)));
  std::fprintf(stderr, "device: %s (%s)\n", choice.device == worker::Device::kCuda ? "cuda" : "cpu",
               choice.reason.c_str());
  return choice;
}

absl::Status RunRank() {
  ASSIGN_OR_RETURN(const worker::DeviceChoice choice, ChosenDevice());
  if (choice.device != worker::Device::kCuda)
    return absl::InvalidArgumentError("rank runs on --device=cuda only");
  ASSIGN_OR_RETURN(const kernels::SamplingSpec sampling, Sampling());
  ASSIGN_OR_RETURN(const boost::json::object report,
                   MeasureRank({.shape = absl::GetFlag(FLAGS_shape),
                                .num_ranks = absl::GetFlag(FLAGS_rank_of),
                                .markov_rank = absl::GetFlag(FLAGS_markov_rank),
                                .num_gpus = absl::GetFlag(FLAGS_gpus),
                                .context = absl::GetFlag(FLAGS_context),
                                .prefill_tokens = absl::GetFlag(FLAGS_prefill),
                                .rounds = absl::GetFlag(FLAGS_rounds),
                                .distinct_experts = absl::GetFlag(FLAGS_distinct_experts),
                                .sequences = absl::GetFlag(FLAGS_sequences),
                                .tokens_per_round = absl::GetFlag(FLAGS_tokens_per_round),
                                .trace_file = absl::GetFlag(FLAGS_trace),
                                .kv_fp8 = absl::GetFlag(FLAGS_kv_fp8),
                                .sampling = sampling}));
  Print(report);
  return absl::OkStatus();
}

absl::Status RunLoad() {
  ASSIGN_OR_RETURN(const worker::DeviceChoice choice, ChosenDevice());
  const std::string cache = absl::GetFlag(FLAGS_weights_cache),
                    experts = absl::GetFlag(FLAGS_experts);
  if (!cache.empty() && choice.device != worker::Device::kCuda)
    return absl::InvalidArgumentError("--weights_cache: only --device=cuda keeps packed weights");
  if (experts != "as-stored" && experts != "mxfp4") {
    return absl::InvalidArgumentError(
        absl::StrCat("--experts: is ", experts, "; must be as-stored or mxfp4"));
  }
  LoadBenchOptions options{
      .device = choice.device, .stream_only = absl::GetFlag(FLAGS_stream_only), .executor = {}};
  options.executor.model_folder = absl::GetFlag(FLAGS_model);
  options.executor.num_ranks = absl::GetFlag(FLAGS_gpus);
  options.executor.num_threads = absl::GetFlag(FLAGS_threads);
  options.executor.max_sequences = 1;
  options.executor.kv_tokens = 1024;
  if (experts == "mxfp4") options.executor.experts = worker::ExpertPrecision::kMxfp4;
  options.executor.reads.threads = absl::GetFlag(FLAGS_read_threads);
  options.executor.weights_cache = cache;
  options.executor.notice = [](const std::string& text) {
    std::fprintf(stderr, "%s\n", text.c_str());
  };
  ASSIGN_OR_RETURN(const boost::json::object report, MeasureLoad(options));
  Print(report);
  return absl::OkStatus();
}

absl::Status RunAllReduce() {
  ASSIGN_OR_RETURN(const boost::json::object report,
                   MeasureAllReduce({.num_gpus = absl::GetFlag(FLAGS_gpus),
                                     .num_calls = absl::GetFlag(FLAGS_calls)}));
  Print(report);
  return absl::OkStatus();
}

absl::Status RunGrammar() {
  const int texts = absl::GetFlag(FLAGS_texts);
  if (texts < 1)
    return absl::InvalidArgumentError(absl::StrCat("--texts: is ", texts, "; must be at least 1"));
  ASSIGN_OR_RETURN(const boost::json::object report,
                   MeasureGrammar({.model_folder = absl::GetFlag(FLAGS_model),
                                   .schema_file = absl::GetFlag(FLAGS_schema),
                                   .texts = texts,
                                   .seed = kSeed}));
  Print(report);
  return absl::OkStatus();
}

// REQUIRES: a format, not none.
absl::StatusOr<worker::OutputGrammar> OutputOf(const worker::ModelConfig& config) {
  ASSIGN_OR_RETURN(std::shared_ptr<const grammar::Vocabulary> vocabulary,
                   LoadVocabulary(absl::GetFlag(FLAGS_model), config));
  worker::OutputGrammar output;
  output.constraint =
      std::make_shared<grammar::Constraint>(grammar::AnyJsonObject(), std::move(vocabulary));
  return output;
}

absl::Status ChooseInstructionSet(const std::string& name) {
  if (name.empty()) return absl::OkStatus();
  const int best = static_cast<int>(kernels::DetectInstructionSet());
  std::vector<std::string> names;
  for (int i = 0; i <= best; ++i) {
    const auto set = static_cast<kernels::InstructionSet>(i);
    names.emplace_back(kernels::Name(set));
    if (names.back() != name) continue;
    kernels::SetInstructionSet(set);
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--instruction_set: is ", name, "; this CPU has ", absl::StrJoin(names, ", ")));
}

absl::StatusOr<worker::DrafterPrecision> DrafterPrecision() {
  const std::string name = absl::GetFlag(FLAGS_drafter_precision);
  if (name == "auto") return worker::DrafterPrecision::kAuto;
  if (name == "bf16") return worker::DrafterPrecision::kBf16;
  if (name == "fp8") return worker::DrafterPrecision::kFp8;
  return absl::InvalidArgumentError(
      absl::StrCat("--drafter_precision: is ", name, "; must be auto, bf16 or fp8"));
}

absl::StatusOr<std::vector<std::vector<int32_t>>> Prompts(const worker::ModelConfig& config) {
  const std::string model = absl::GetFlag(FLAGS_model), name = absl::GetFlag(FLAGS_prompts);
  std::vector<std::vector<int32_t>> texts;
  if (name == "long" || name == "repeats") {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(model + "/heldout/text.txt"));
    ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, TokenizeText(model, text));
    texts = name == "long" ? Stretches(tokens, kLongStretch, 0)
                           : Stretches(tokens, kRepeatedStretch, kRepeated);
  } else {
    ASSIGN_OR_RETURN(std::vector<HeldOutPrompt> prompts, name == "held-out"
                                                             ? LoadHeldOutPrompts(model, config)
                                                             : LoadPromptFile(model, name));
    for (HeldOutPrompt& prompt : prompts) texts.push_back(std::move(prompt.tokens));
  }
  if (texts.empty()) return absl::InvalidArgumentError("--prompts: no prompt found");
  return texts;
}

boost::json::object CostReport(const worker::DraftCosts::Point& point) {
  return {{"tokens", point.tokens},
          {"fixed", point.cost.fixed},
          {"row", point.cost.row},
          {"block", point.cost.block}};
}

absl::Status RunDecode() {
  if (absl::GetFlag(FLAGS_max_tokens) < 2)
    return absl::InvalidArgumentError("--max_tokens must be at least 2");
  if (absl::GetFlag(FLAGS_repeats) < 1)
    return absl::InvalidArgumentError("--repeats must be at least 1");
  constexpr int kSequencesMax = 64;
  const int sequences = absl::GetFlag(FLAGS_sequences);
  if (sequences < 1 || sequences > kSequencesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("--sequences: is ", sequences, "; must be from 1 to ", kSequencesMax));
  }
  ASSIGN_OR_RETURN(const kernels::SamplingSpec sampling, Sampling());
  const std::string output_format = absl::GetFlag(FLAGS_output_format);
  if (output_format != "none" && output_format != "json_object") {
    return absl::InvalidArgumentError(
        absl::StrCat("--output_format: is ", output_format, "; must be none or json_object"));
  }

  if (absl::Status status = ChooseInstructionSet(absl::GetFlag(FLAGS_instruction_set));
      !status.ok())
    return status;
  worker::ExecutorOptions executor_options;
  executor_options.model_folder = absl::GetFlag(FLAGS_model);
  executor_options.num_threads = absl::GetFlag(FLAGS_threads);
  executor_options.max_sequences = sequences;
  executor_options.kv_tokens = int64_t{8192} * sequences;
  ASSIGN_OR_RETURN(executor_options.drafter_precision, DrafterPrecision());
  executor_options.count_experts = true;
  executor_options.num_ranks = absl::GetFlag(FLAGS_gpus);
  ASSIGN_OR_RETURN(const worker::DeviceChoice choice, ChosenDevice());
  ASSIGN_OR_RETURN(const auto executor, worker::CreateExecutor(choice.device, executor_options));
  const worker::ModelConfig& config = executor->config();
  DecodeOptions plain_options = {.max_tokens = absl::GetFlag(FLAGS_max_tokens),
                                 .sequences = sequences,
                                 .sampling = sampling,
                                 .statistics = &executor->statistics()};
  if (output_format != "none") {
    ASSIGN_OR_RETURN(plain_options.output, OutputOf(config));
  }
  DecodeOptions speculative_options = plain_options;
  speculative_options.looks_up = absl::GetFlag(FLAGS_lookup_drafts);
  const std::string blocks = absl::GetFlag(FLAGS_blocks);
  if (blocks != "whole" && blocks != "chosen") {
    return absl::InvalidArgumentError(
        absl::StrCat("--blocks: is ", blocks, "; must be whole or chosen"));
  }
  speculative_options.chooses_blocks = blocks == "chosen";
  speculative_options.block = std::max(1, config.drafter.block_size);

  ASSIGN_OR_RETURN(const std::vector<std::vector<int32_t>> texts, Prompts(config));

  // Plain and speculative passes alternate, so that a change of the machine's load falls on both.
  std::vector<DecodeOutcome> plain_passes, speculative_passes;
  RunPass(*executor, {texts.front()}, speculative_options, "warm-up");
  speculative_options.draft_costs = worker::MeasureDraftCosts(*executor, RealClock());
  for (int i = 0; i < absl::GetFlag(FLAGS_repeats); ++i) {
    plain_passes.push_back(
        RunPass(*executor, texts, plain_options, absl::StrCat("plain, pass ", i + 1)));
    speculative_passes.push_back(
        RunPass(*executor, texts, speculative_options, absl::StrCat("speculative, pass ", i + 1)));
  }
  const DecodeOutcome plain = MedianPass(plain_passes);
  const DecodeOutcome speculative = MedianPass(speculative_passes);

  const double plain_bytes = static_cast<double>(plain.weight_bytes) / plain.tokens;
  const double round_bytes = static_cast<double>(speculative.weight_bytes) / speculative.rounds;
  const double cache_bandwidth = ReadBandwidth(choice.device, static_cast<size_t>(round_bytes));
  const double dram_bandwidth = ReadBandwidth(choice.device, kDramBufferBytes);

  const auto bound = [&](const DecodeOutcome& pass) {
    return cache_bandwidth / static_cast<double>(pass.weight_bytes) *
           static_cast<double>(pass.tokens);
  };
  const double plain_bound = bound(plain), speculative_bound = bound(speculative);
  const boost::json::object report = {
      {"device", executor->device()},
      {"prompts", texts.size()},
      {"sequences", sequences},
      {"temperature", sampling.temperature},
      {"top_k", sampling.top_k},
      {"top_p", sampling.top_p},
      {"output_format", output_format},
      {"prompt_tokens", plain.prompt_tokens},
      {"prompt_tokens_per_second", static_cast<double>(plain.prompt_tokens) / plain.prompt_seconds},
      {"plain_tokens_per_second", TokensPerSecond(plain)},
      {"speculative_tokens_per_second", TokensPerSecond(speculative)},
      {"speedup", TokensPerSecond(speculative) / TokensPerSecond(plain)},
      {"tokens_per_round", static_cast<double>(speculative.tokens) / speculative.sequence_rounds},
      {"rows_per_round", static_cast<double>(speculative.rows) / speculative.sequence_rounds},
      {"looked_up_share_of_tokens",
       static_cast<double>(speculative.looked_up_tokens) / speculative.tokens},
      {"looked_up_tokens_per_round", static_cast<double>(speculative.looked_up_tokens) /
                                         std::max<int64_t>(1, speculative.looked_up_rounds)},
      {"draft_cost", CostReport(speculative_options.draft_costs.few)},
      {"draft_cost_behind_many_tokens", CostReport(speculative_options.draft_costs.many)},
      {"identical", plain.texts == speculative.texts},
      {"ms_per_plain_token", 1e3 * plain.seconds / plain.tokens},
      {"ms_per_round", 1e3 * speculative.seconds / speculative.rounds},
      {"plain_bytes_per_token", plain_bytes},
      {"speculative_bytes_per_round", round_bytes},
      {"read_gb_per_second_weights_size", cache_bandwidth / 1e9},
      {"read_gb_per_second_dram", dram_bandwidth / 1e9},
      {"plain_bound_tokens_per_second", plain_bound},
      {"speculative_bound_tokens_per_second", speculative_bound},
      {"plain_of_bound", TokensPerSecond(plain) / plain_bound},
      {"speculative_of_bound", TokensPerSecond(speculative) / speculative_bound},
  };
  Print(report);
  if (plain.texts != speculative.texts)
    return absl::InternalError("speculative text differs from plain text");
  return absl::OkStatus();
}

}  // namespace
}  // namespace ultraspeed::bench

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "measures UltraSpeed.\n  ultraspeed-bench decode [--model DIR] [--device auto|cpu|cuda] "
      "[--gpus N] [--instruction_set NAME] [--drafter_precision auto|bf16|fp8] "
      "[--prompts held-out|FILE] [--max_tokens N] [--sequences N] [--temperature X] "
      "[--top_k N] [--top_p X] [--output_format none|json_object] [--json]\n"
      "  ultraspeed-bench grammar [--model DIR] [--schema FILE] [--texts N] [--json]\n"
      "  ultraspeed-bench load --model DIR [--device auto|cpu|cuda] [--gpus N] [--read_threads N] "
      "[--experts as-stored|mxfp4] [--weights_cache DIR] [--stream_only] [--json]\n"
      "  ultraspeed-bench rank [--shape mimo-v2.5-pro] [--rank_of N] [--gpus N] [--markov_rank N] "
      "[--context N] [--distinct_experts N] [--sequences N] "
      "[--temperature X] [--top_k N] [--top_p X] [--json]\n"
      "  ultraspeed-bench allreduce --gpus N [--calls N] [--json]\n"
      "  ultraspeed-bench serving --api_key_file FILE [--target HOST:PORT] [--requests_per_second "
      "X] "
      "[--flood X] [--ultraspeed_share X] [--duration 30s] [--max_tokens N] [--json]\n"
      "  ultraspeed-bench http --api_key_file FILE [--target HOST:PORT] [--http_target HOST:PORT] "
      "[--max_tokens N] [--repeats N] [--json]");
  const std::vector<char*> arguments = absl::ParseCommandLine(argc, argv);
  const std::string command = arguments.size() == 2 ? arguments[1] : "";
  if (absl::GetFlag(FLAGS_gpus) > 1) ultraspeed::worker::SetNodeEnvironment();
  absl::Status status;
  if (command == "decode") {
    status = ultraspeed::bench::RunDecode();
  } else if (command == "grammar") {
    status = ultraspeed::bench::RunGrammar();
  } else if (command == "load") {
    status = ultraspeed::bench::RunLoad();
  } else if (command == "rank") {
    status = ultraspeed::bench::RunRank();
  } else if (command == "allreduce") {
    status = ultraspeed::bench::RunAllReduce();
  } else if (command == "serving") {
    status = ultraspeed::bench::RunServing(absl::GetFlag(FLAGS_json));
  } else if (command == "http") {
    status = ultraspeed::bench::RunHttp(absl::GetFlag(FLAGS_json));
  } else {
    std::cerr << "usage: ultraspeed-bench allreduce|decode|grammar|http|load|rank|serving [--help "
                 "for the flags]"
              << std::endl;
    return 2;
  }
  if (!status.ok()) {
    std::cerr << "ultraspeed-bench: " << status.message() << std::endl;
    return status.code() == absl::StatusCode::kInvalidArgument ? 2 : 1;
  }
  return 0;
}
