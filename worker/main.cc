// ultraspeed-worker: loads one checkpoint and serves worker.proto until SIGTERM. The only file of
// the worker that wires objects.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "common/clock.h"
#include "common/config.h"
#include "common/limits.h"
#include "common/logging.h"
#include "common/metrics.h"
#include "common/server_main.h"
#include "common/status_macros.h"
#include "common/tls.h"
#include "worker/calibration.h"
#include "worker/cuda/device.h"
#include "worker/device.h"
#include "worker/engine.h"
#include "worker/executor.h"
#include "worker/identity.h"
#include "worker/manifest.h"
#include "worker/node_plan.h"
#include "worker/progress_report.h"
#include "worker/sha256.h"
#include "worker/worker_metrics.h"
#include "worker/worker_server.h"

namespace ultraspeed::worker {
namespace {

constexpr int kManifestThreads = 8;

struct Options {
  std::string device = "auto";
  int gpus = 0;
  bool plan = false;
  bool json = false;
  NodePlanOptions node;
  std::string listen = "127.0.0.1:50061";
  std::string metrics_listen = "127.0.0.1:0";
  std::string ready_file;
  std::string manifest;
  absl::Duration drain_timeout = absl::Seconds(60);
  int waiting_max = limits::kWaitingRequestsMax;
  ExecutorOptions executor = {.max_batch_tokens = 0, .num_snapshots = 64};
  std::string draft_cost = "measured";
  std::string kv_precision = "bf16";
  std::string drafter_precision = "auto";
  std::string experts = "as-stored";
  std::string direct_reads = "never";
  SchedulerOptions scheduler;
  TlsOptions tls;
};

void AddFlags(FlagTable& flags, Options* options) {
  ExecutorOptions& executor = options->executor;
  flags.String("model", &executor.model_folder, "folder",
               "Checkpoint folder in the published layout (required); --plan also takes "
               "shape:mimo-v2.5-pro");
  flags.String(
      "manifest", &options->manifest, "file",
      "sha256sum's list of the model's files, relative to its folder; every file is checked "
      "before loading. Empty = no check");
  flags.Choice("device", &options->device, {"auto", "cpu", "cuda"},
               "Where the model runs; auto is cuda where a usable GPU is found, else cpu");
  flags.String("listen", &options->listen, "host:port", "Where to serve; port 0 takes a free one");
  flags.String("metrics-listen", &options->metrics_listen, "host:port",
               "Where to serve /metrics; port 0 takes a free one, empty = nowhere");
  flags.Int("max-sequences", &executor.max_sequences, {1, limits::kSequencesMax}, "sequences",
            "Requests that run at once");
  flags.Int(
      "max-waiting", &options->waiting_max, {0, limits::kWaitingRequestsMax}, "requests",
      "Requests that are accepted beyond max-sequences; more are refused with RESOURCE_EXHAUSTED");
  flags.Int("max-batch-tokens", &executor.max_batch_tokens, {0, 8192}, "rows",
            "Rows of one round, all requests together, so the longest pieces in which prompts are "
            "computed; 0 takes 2048 on a GPU and 512 on a CPU");
  flags.Int64("kv-tokens", &executor.kv_tokens, {256, int64_t{1} << 32}, "tokens",
              "KV capacity of the full-attention layers");
  flags.Int("prefix-snapshots", &executor.num_snapshots, {0, limits::kPrefixSnapshotsMax},
            "snapshots",
            "Places from which prompts that begin like earlier ones may go on without computing "
            "them again; 0 computes every prompt whole");
  flags.Choice(
      "kv-precision", &options->kv_precision, {"bf16", "fp8"},
      "How keys and values are cached; fp8 takes half the memory, needs a GPU, and changes "
      "the text");
  flags.Choice("drafter-precision", &options->drafter_precision, {"auto", "bf16", "fp8"},
               "How a CPU holds the drafter's weights: fp8 halves what drafting reads, auto is fp8 "
               "with Intel AMX. Never changes the text");
  flags.Bool(
      "resident", &executor.resident,
      "On a GPU, decode a sequence that is alone in its round, or a few in turns, on the "
      "resident engine, where it takes the model's shape and --kv-precision; false runs every "
      "round as single operations. The text is the same");
  flags.Int("threads", &executor.num_threads, {0, 1024}, "threads",
            "Compute threads; 0 = one for each core that the process may use");
  flags.Choice(
      "experts", &options->experts, {"as-stored", "mxfp4"},
      "mxfp4 rounds the experts of an FP8 release to MXFP4 while loading: half the memory, "
      "another model; MXFP4 releases stay as they are");
  flags.String("weights-cache", &executor.weights_cache, "folder",
               "With a GPU: packed weights are kept here after the first load, as much as the GPUs "
               "hold, and later starts read them instead of the checkpoint. Empty = none");
  flags.Int("read-threads", &executor.reads.threads, {0, 256}, "threads",
            "That read the model's files, for all GPUs together; 0 = mapped pages");
  flags.Choice("direct-reads", &options->direct_reads, {"never", "auto", "always"},
               "Whether the model's files are read past the page cache; auto: those that are not "
               "in it");
  flags.Bool("lookup-drafts", &options->scheduler.looks_up_drafts,
             "Where a sequence repeats its own text, draft what followed there instead of running "
             "the drafter. Never changes the text");
  flags.Choice("draft-cost", &options->draft_cost, {"measured", "served-shape"},
               "What drafting is taken to cost when blocks are chosen: measured at start, or the "
               "arithmetic of MiMo-V2.5-Pro on Hopper. Never changes the text");
  flags.String("ready-file", &options->ready_file, "file",
               "Written with {\"port\":..,\"metrics_port\":..} once requests are served");
  flags.Duration("drain-timeout", &options->drain_timeout,
                 "How long SIGTERM waits for running requests");
  NodePlanOptions& node = options->node;
  flags.Bool(
      "plan", &options->plan,
      "Print the memory plan of a node and the floor of a round instead of serving; needs no "
      "GPU and no weights");
  flags.Bool("json", &options->json, "With --plan: for programs");
  flags.Int(
      "gpus", &options->gpus, {0, 64}, "GPUs",
      "GPUs that share the model, 1, 2, 4 or 8; on a CPU as many ranks in one process. 0 = 1 to "
      "serve, 8 to plan");
  flags.Double("gpu-memory-gb", &node.gpu_memory_gb, {1, 10000}, "GB",
               "With --plan: memory of one GPU");
  flags.Double("read-tb-per-second", &node.read_tb_per_second, {0.001, 1000}, "TB/s",
               "With --plan: what one GPU reads, measured");
  AddTlsFlags(flags, "", "the gRPC listener", &options->tls);
}

void ApplyChoices(Options& options) {
  ExecutorOptions& executor = options.executor;
  if (options.kv_precision == "fp8") {
    executor.kv_precision = KvPrecision::kFp8;
    options.node.kv_precision = KvPrecision::kFp8;
  }
  if (options.drafter_precision == "bf16") executor.drafter_precision = DrafterPrecision::kBf16;
  if (options.drafter_precision == "fp8") executor.drafter_precision = DrafterPrecision::kFp8;
  if (options.experts == "mxfp4") executor.experts = ExpertPrecision::kMxfp4;
  if (options.direct_reads == "auto") executor.reads.direct = DirectReads::kAuto;
  if (options.direct_reads == "always") executor.reads.direct = DirectReads::kAlways;
}

void ChooseBatchTokens(Device device, ExecutorOptions& executor) {
  if (executor.max_batch_tokens > 0) return;
  executor.max_batch_tokens =
      device == Device::kCuda ? limits::kGpuBatchTokens : limits::kCpuBatchTokens;
}

absl::Status PrintPlan(Options options) {
  if (options.executor.model_folder.empty())
    return absl::InvalidArgumentError("--model is required; see --help");
  if (options.gpus > 0) options.node.num_gpus = options.gpus;
  ChooseBatchTokens(Device::kCuda, options.executor);
  options.node.max_batch_tokens = options.executor.max_batch_tokens;
  ASSIGN_OR_RETURN(ModelConfig config, ConfigForPlan(options.executor.model_folder));
  if (options.executor.experts == ExpertPrecision::kMxfp4)
    config.expert_format = kernels::WeightFormat::kMxfp4;  // what is held, whatever is read
  ASSIGN_OR_RETURN(const NodePlan plan, PlanNode(config, options.node));
  const std::string text =
      options.json ? boost::json::serialize(ToJson(plan)) + "\n" : ToTable(plan);
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

absl::Status Serve(Options options) {
  if (options.executor.model_folder.empty())
    return absl::InvalidArgumentError("--model is required; see --help");
  ShutdownSignal shutdown;  // before any other thread
  options.executor.num_ranks = std::max(1, options.gpus);
  if (options.executor.num_ranks > 1) SetNodeEnvironment();
  ASSIGN_OR_RETURN(const DeviceChoice choice, ChooseDevice(options.device));
  Log(LogLevel::kInfo, "worker.device",
      {{"device", choice.device == Device::kCuda ? "cuda" : "cpu"}, {"reason", choice.reason}});
  ChooseBatchTokens(choice.device, options.executor);
  ASSIGN_OR_RETURN(ModelIdentity identity, ReadModelIdentity(options.executor.model_folder));
  Log(LogLevel::kInfo, "worker.loading",
      {{"model", options.executor.model_folder}, {"weights_sha256", identity.weights_sha256}});
  if (!options.manifest.empty()) {
    RETURN_IF_ERROR(CheckManifest(options.executor.model_folder, options.manifest, kManifestThreads,
                                  ProgressReport::Of("checking")));
    Log(LogLevel::kInfo, "worker.manifest_checked", {{"manifest", options.manifest}});
  }
  if (!options.executor.weights_cache.empty() && choice.device == Device::kCpu) {
    Log(LogLevel::kWarning, "worker.weights_cache_unused",
        {{"reason", "only --device=cuda keeps packed weights; a CPU packs while it reads"}});
  }
  options.executor.notice = [](const std::string& text) {
    Log(LogLevel::kInfo, "worker.load_notice", {{"text", text}});
  };
  options.executor.progress = ProgressReport::Of("loading");
  const absl::Duration started_at = RealClock().Monotonic();
  ASSIGN_OR_RETURN(std::unique_ptr<Executor> executor,
                   CreateExecutor(choice.device, options.executor));
  const std::string model = executor->config().name;
  if (executor->config().requantize_experts) {  // another model than the folder's
    identity.weights_sha256 = Sha256Hex(absl::StrCat(identity.weights_sha256, " experts mxfp4"));
  }
  const std::string device = executor->device();
  const int draft_block = executor->config().draft_block();
  const int drafts_max = std::max(draft_block - 1, executor->given_drafts_max());

  if (options.draft_cost == "measured") {
    const DraftCosts costs = MeasureDraftCosts(*executor, RealClock());
    options.scheduler.draft_costs = costs;
    const DraftCost &cost = costs.few.cost, &cost_behind_many = costs.many.cost;
    Log(LogLevel::kInfo, "worker.calibrated",
        {{"draft_fixed_cost", absl::StrCat(cost.fixed)},
         {"draft_row_cost", absl::StrCat(cost.row)},
         {"draft_block_cost", absl::StrCat(cost.block)},
         {"tokens", costs.many.tokens},
         {"draft_fixed_cost_behind_tokens", absl::StrCat(cost_behind_many.fixed)},
         {"draft_row_cost_behind_tokens", absl::StrCat(cost_behind_many.row)}});
  }

  Metrics metrics;
  int metrics_port = 0;
  if (!options.metrics_listen.empty()) {
    ASSIGN_OR_RETURN(metrics_port, metrics.Serve(options.metrics_listen));
  }
  WorkerMetrics worker_metrics(metrics, drafts_max);
  Engine engine(std::move(executor),
                {.waiting_max = options.waiting_max, .scheduler = options.scheduler}, RealClock(),
                &worker_metrics);
  ASSIGN_OR_RETURN(const std::unique_ptr<WorkerServer> server,
                   WorkerServer::Create(engine, std::move(identity), options.listen, options.tls));
  engine.Start();
  engine.WaitReady();
  server->SetServing(true);
  Log(LogLevel::kInfo, "worker.loaded",
      {{"model", model},
       {"device", device},
       {"seconds", absl::ToDoubleSeconds(RealClock().Monotonic() - started_at)},
       {"context_tokens", engine.bounds().context_tokens},
       {"draft_block", draft_block}});
  RETURN_IF_ERROR(AnnounceReady("worker", {.port = server->port(), .metrics_port = metrics_port},
                                options.ready_file));

  const int signal = shutdown.Wait();
  Log(LogLevel::kInfo, "worker.draining",
      {{"signal", signal}, {"running", engine.Load().running}, {"waiting", engine.Load().waiting}});
  const bool drained = server->Shutdown(options.drain_timeout);
  const EngineLoad load = engine.Load();
  Log(LogLevel::kInfo, "worker.stopped",
      {{"drained", drained},
       {"requests_total", load.requests_total},
       {"completion_tokens_total", load.completion_tokens_total}});
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  FlagTable flags("ultraspeed-worker",
                  "serves one MiMo-V2 checkpoint over gRPC: token ids in, token ids out");
  AddFlags(flags, &options);
  const absl::StatusOr<ParseOutcome> outcome = flags.Parse(argc, argv);
  if (outcome.ok() && *outcome == ParseOutcome::kHelp) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  ApplyChoices(options);
  const absl::Status status = !outcome.ok()  ? outcome.status()
                              : options.plan ? PrintPlan(std::move(options))
                                             : Serve(std::move(options));
  if (status.ok()) return 0;
  std::fprintf(stderr, "ultraspeed-worker: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace
}  // namespace ultraspeed::worker

int main(int argc, char** argv) { return ultraspeed::worker::Main(argc, argv); }
