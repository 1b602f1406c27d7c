#include "bench/serving.h"

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/support/client_callback.h>

#include <chrono>
#include <fstream>
#include <iomanip>
#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "bench/open_loop.h"
#include "common/grpc_status.h"
#include "common/status_macros.h"
#include "ultraspeed/v1/inference.grpc.pb.h"

namespace ultraspeed::bench {
namespace {

constexpr int kTenantsMax = 1000;
constexpr int64_t kRequestsMax = 1'000'000;

double Milliseconds(absl::Duration duration) { return absl::ToDoubleMilliseconds(duration); }

// What became of one request. Times in ms.
struct Outcome {
  DueRequest due;
  absl::StatusCode code = absl::StatusCode::kUnknown;
  int64_t completion_tokens = 0;
  double sent_late = 0;         // after it was due
  std::optional<double> ttft;   // from when it was due
  std::optional<double> queue;  // the router's own measurement, of the last chunk
  std::optional<double> tokens_per_second;
};

// Counts streams that have not ended.
class OpenStreams {
 public:
  void Add() {
    absl::MutexLock lock(&mutex_);
    ++count_;
  }
  void Done() {
    absl::MutexLock lock(&mutex_);
    --count_;
  }
  void AwaitNone() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](int64_t* count) { return *count == 0; }, &count_));
  }

 private:
  absl::Mutex mutex_;
  int64_t count_ ABSL_GUARDED_BY(mutex_) = 0;
};

// One request on its way; deletes itself when it is over.
class StreamCall : public grpc::ClientReadReactor<v1::GenerateChunk> {
 public:
  StreamCall(absl::Time due_at, Outcome* outcome, OpenStreams* open)
      : due_at_(due_at), outcome_(outcome), open_(open) {}

  void Start(v1::Inference::Stub& stub, const std::string& api_key, v1::GenerateRequest request,
             absl::Duration timeout) {
    request_ = std::move(request);
    if (!api_key.empty()) context_.AddMetadata("authorization", absl::StrCat("Bearer ", api_key));
    context_.set_deadline(absl::ToChronoTime(due_at_ + timeout));
    outcome_->sent_late = Milliseconds(absl::Now() - due_at_);
    stub.async()->Generate(&context_, &request_, this);
    StartRead(&chunk_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (!outcome_->ttft && chunk_.usage().completion_tokens() > 0)
      outcome_->ttft = Milliseconds(absl::Now() - due_at_);
    outcome_->completion_tokens = chunk_.usage().completion_tokens();
    if (chunk_.has_timing()) {
      outcome_->queue = chunk_.timing().queue_ms();
      if (chunk_.timing().tokens_per_second() > 0)
        outcome_->tokens_per_second = chunk_.timing().tokens_per_second();
    }
    chunk_.Clear();
    StartRead(&chunk_);
  }

  void OnDone(const grpc::Status& status) override {
    outcome_->code = FromGrpcStatus(status).code();
    OpenStreams* open = open_;
    delete this;
    open->Done();
  }

 private:
  const absl::Time due_at_;
  Outcome* const outcome_;
  OpenStreams* const open_;
  grpc::ClientContext context_;
  v1::GenerateRequest request_;
  v1::GenerateChunk chunk_;
};

boost::json::object Json(const Quantiles& quantiles) {
  return {{"p50", quantiles.p50},
          {"p90", quantiles.p90},
          {"p99", quantiles.p99},
          {"max", quantiles.max}};
}

// Values of the outcomes that `select` takes, by `value` where present.
template <typename Select, typename Value>
std::vector<double> Collect(const std::vector<Outcome>& outcomes, Select select, Value value) {
  std::vector<double> values;
  for (const Outcome& outcome : outcomes) {
    if (!select(outcome)) continue;
    if (const std::optional<double> one = value(outcome)) values.push_back(*one);
  }
  return values;
}

std::optional<double> QueueWait(const Outcome& outcome) { return outcome.queue; }
std::optional<double> TimeToFirstToken(const Outcome& outcome) { return outcome.ttft; }
std::optional<double> Speed(const Outcome& outcome) { return outcome.tokens_per_second; }

// The figures of a group of requests.
template <typename Select>
boost::json::object Summarize(const std::vector<Outcome>& outcomes, Select select) {
  int64_t requests = 0, ok = 0, refused = 0, tokens = 0;
  for (const Outcome& outcome : outcomes) {
    if (!select(outcome)) continue;
    ++requests;
    ok += outcome.code == absl::StatusCode::kOk;
    refused += outcome.code == absl::StatusCode::kResourceExhausted;
    tokens += outcome.completion_tokens;
  }
  return {{"requests", requests},
          {"ok", ok},
          {"refused", refused},
          {"failed", requests - ok - refused},
          {"completion_tokens", tokens},
          {"queue_ms", Json(QuantilesOf(Collect(outcomes, select, QueueWait)))},
          {"ttft_ms", Json(QuantilesOf(Collect(outcomes, select, TimeToFirstToken)))},
          {"stream_tokens_per_second", Json(QuantilesOf(Collect(outcomes, select, Speed)))}};
}

class ServingBench {
 public:
  explicit ServingBench(const ServingOptions& options) : options_(options) {}

  absl::Status Connect() {
    ASSIGN_OR_RETURN(const auto credentials,
                     CreateChannelCredentials(options_.tls, options_.target));
    for (size_t i = 0; i < options_.tenants.size(); ++i) {
      grpc::ChannelArguments arguments;
      arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // one connection per tenant
      stubs_.push_back(v1::Inference::NewStub(
          grpc::CreateCustomChannel(options_.target, credentials, arguments)));
    }
    return ChooseModel();
  }

  boost::json::object RunPhase(const std::string& name, double flood_factor) {
    const auto num_tenants = static_cast<double>(options_.tenants.size());
    std::vector<double> rates(options_.tenants.size(), options_.requests_per_second / num_tenants);
    rates[0] *= flood_factor;
    const std::vector<DueRequest> schedule =
        PoissonSchedule(rates, options_.ultraspeed_share, options_.duration, options_.seed);
    std::vector<Outcome> outcomes(schedule.size());
    OpenStreams open;
    const absl::Time start = absl::Now();
    for (size_t i = 0; i < schedule.size(); ++i) {
      const absl::Time due_at = start + schedule[i].at;
      absl::SleepFor(due_at - absl::Now());
      outcomes[i].due = schedule[i];
      open.Add();
      (new StreamCall(due_at, &outcomes[i], &open))
          ->Start(*stubs_[schedule[i].tenant], options_.tenants[schedule[i].tenant].api_key,
                  Request(schedule[i]), options_.request_timeout);
    }
    open.AwaitNone();
    return Report(name, flood_factor, outcomes, absl::Now() - start);
  }

 private:
  absl::Status ChooseModel() {
    model_ = options_.model;
    if (!model_.empty()) return absl::OkStatus();
    grpc::ClientContext context;
    context.AddMetadata("authorization", absl::StrCat("Bearer ", options_.tenants[0].api_key));
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    v1::ListModelsResponse models;
    RETURN_IF_ERROR(
        FromGrpcStatus(stubs_[0]->ListModels(&context, v1::ListModelsRequest(), &models)));
    if (models.models_size() != 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("--serving_model: the router serves ", models.models_size(), ", name one"));
    }
    model_ = models.models(0).name();
    return absl::OkStatus();
  }

  v1::GenerateRequest Request(const DueRequest& due) const {
    v1::GenerateRequest request;
    request.set_model(model_);
    request.set_prompt(options_.prompt);
    v1::GenerateOptions& generate = *request.mutable_options();
    generate.set_max_tokens(options_.max_tokens);
    generate.set_ignore_eos(true);
    generate.set_service_tier(due.ultraspeed ? v1::SERVICE_TIER_ULTRASPEED
                                             : v1::SERVICE_TIER_STANDARD);
    return request;
  }

  boost::json::object Report(const std::string& name, double flood_factor,
                             const std::vector<Outcome>& outcomes, absl::Duration took) const {
    const auto all = [](const Outcome&) { return true; };
    boost::json::object report = Summarize(outcomes, all);
    report["phase"] = name;
    report["flood_factor"] = flood_factor;
    report["seconds"] = absl::ToDoubleSeconds(took);
    report["tokens_per_second"] =
        report.at("completion_tokens").to_number<double>() / absl::ToDoubleSeconds(took);
    report["sent_late_ms"] = Json(QuantilesOf(
        Collect(outcomes, all, [](const Outcome& o) { return std::optional(o.sent_late); })));
    report["standard"] = Summarize(outcomes, [](const Outcome& o) { return !o.due.ultraspeed; });
    report["ultraspeed"] = Summarize(outcomes, [](const Outcome& o) { return o.due.ultraspeed; });
    report["first_tenant"] =
        Summarize(outcomes, [](const Outcome& o) { return o.due.tenant == 0; });
    report["other_tenants"] =
        Summarize(outcomes, [](const Outcome& o) { return o.due.tenant != 0; });
    boost::json::array tenants;
    std::vector<double> demands, got;
    for (size_t i = 0; i < options_.tenants.size(); ++i) {
      boost::json::object tenant = Summarize(
          outcomes, [i](const Outcome& o) { return o.due.tenant == static_cast<int>(i); });
      demands.push_back(tenant.at("requests").to_number<double>() * options_.max_tokens);
      got.push_back(tenant.at("completion_tokens").to_number<double>());
      tenant["tenant"] = options_.tenants[i].name;
      tenants.push_back(std::move(tenant));
    }
    report["tenants"] = std::move(tenants);
    report["jain_of_max_min_share"] = FairnessIndex(demands, got);
    return report;
  }

  // Jain's index of what tenants got over what a max-min fair division of all that was got would
  // have given them. A tenant that asked for nothing does not count.
  static double FairnessIndex(const std::vector<double>& demands, const std::vector<double>& got) {
    double total = 0;
    for (const double tokens : got) total += tokens;
    const std::vector<double> shares = MaxMinShares(demands, total);
    std::vector<double> ratios;
    for (size_t i = 0; i < got.size(); ++i) {
      if (shares[i] > 0) ratios.push_back(got[i] / shares[i]);
    }
    return JainIndex(ratios);
  }

  const ServingOptions& options_;
  std::string model_;
  std::vector<std::unique_ptr<v1::Inference::Stub>> stubs_;  // by tenant
};

void PrintRow(const std::string& label, const boost::json::object& group, std::ostream& out) {
  const auto at = [&](const char* field, const char* quantile) {
    return group.at(field).as_object().at(quantile).to_number<double>();
  };
  out << std::left << std::setw(18) << label.substr(0, 17) << std::right << std::fixed
      << std::setw(8) << group.at("requests").to_number<int64_t>() << std::setw(8)
      << group.at("ok").to_number<int64_t>() << std::setw(8)
      << group.at("refused").to_number<int64_t>() << std::setw(8)
      << group.at("failed").to_number<int64_t>() << std::setprecision(1);
  for (const char* field : {"queue_ms", "ttft_ms"}) {
    for (const char* quantile : {"p50", "p90", "p99"}) out << std::setw(10) << at(field, quantile);
  }
  out << std::setw(10) << at("stream_tokens_per_second", "p50") << "\n";
}

}  // namespace

absl::StatusOr<std::vector<ServingTenant>> ReadTenants(const std::string& file) {
  std::ifstream in(file);
  if (!in)
    return absl::InvalidArgumentError(absl::StrCat("--api_key_file=", file, ": cannot read"));
  std::vector<ServingTenant> tenants;
  for (std::string line; std::getline(in, line);) {
    const std::vector<std::string> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
    if (words.empty() || words[0][0] == '#') continue;
    if (words.size() > 2) {
      return absl::InvalidArgumentError(
          absl::StrCat("--api_key_file: line ", tenants.size() + 1, ": must be \"name key\""));
    }
    tenants.push_back(
        {.name = words.size() == 2 ? words[0] : absl::StrCat("tenant-", tenants.size()),
         .api_key = words.back()});
  }
  return tenants;
}

absl::Status ServingOptions::Validate() const {
  if (tenants.empty() || tenants.size() > kTenantsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("--api_key_file: ", tenants.size(), " keys, must be 1..", kTenantsMax));
  }
  if (max_tokens < 1)
    return absl::InvalidArgumentError(absl::StrCat("--max_tokens=", max_tokens, ": at least 1"));
  if (ultraspeed_share < 0 || ultraspeed_share > 1)
    return absl::InvalidArgumentError(
        absl::StrCat("--ultraspeed_share=", ultraspeed_share, ": must be 0..1"));
  if (flood_factor < 1)
    return absl::InvalidArgumentError(absl::StrCat("--flood=", flood_factor, ": at least 1"));
  const double requests =
      requests_per_second * absl::ToDoubleSeconds(duration) * std::max(1.0, flood_factor);
  if (!(requests_per_second > 0) || duration <= absl::ZeroDuration() || requests > kRequestsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--requests_per_second=", requests_per_second, " for ", absl::FormatDuration(duration),
        ": both must be above 0, and at most ", kRequestsMax, " requests in all"));
  }
  return absl::OkStatus();
}

absl::StatusOr<boost::json::object> MeasureServing(const ServingOptions& options) {
  RETURN_IF_ERROR(options.Validate());
  ServingBench bench(options);
  RETURN_IF_ERROR(bench.Connect());
  boost::json::array phases;
  phases.push_back(bench.RunPhase("even", 1));
  if (options.flood_factor > 1) phases.push_back(bench.RunPhase("flood", options.flood_factor));
  return boost::json::object{{"target", options.target},
                             {"num_tenants", options.tenants.size()},
                             {"requests_per_second", options.requests_per_second},
                             {"max_tokens", options.max_tokens},
                             {"phases", std::move(phases)}};
}

void PrintServing(const boost::json::object& report, std::ostream& out) {
  for (const boost::json::value& value : report.at("phases").as_array()) {
    const boost::json::object& phase = value.as_object();
    const auto number = [&](const char* field) { return phase.at(field).to_number<double>(); };
    out << std::fixed << std::setprecision(1) << "phase "
        << std::string(phase.at("phase").as_string()) << ": first tenant x"
        << number("flood_factor") << ", " << number("seconds") << " s, "
        << number("tokens_per_second") << " tokens/s" << std::setprecision(4)
        << ", Jain's index of max-min shares " << number("jain_of_max_min_share")
        << std::setprecision(1) << ", tester late p99 "
        << phase.at("sent_late_ms").as_object().at("p99").to_number<double>() << " ms\n";
    out << std::left << std::setw(18) << "" << std::right << std::setw(8) << "asked" << std::setw(8)
        << "ok" << std::setw(8) << "refused" << std::setw(8) << "failed" << std::setw(10)
        << "queue p50" << std::setw(10) << "p90" << std::setw(10) << "p99 ms" << std::setw(10)
        << "ttft p50" << std::setw(10) << "p90" << std::setw(10) << "p99 ms" << std::setw(10)
        << "tok/s p50"
        << "\n";
    PrintRow("all", phase, out);
    PrintRow("standard", phase.at("standard").as_object(), out);
    PrintRow("ultraspeed", phase.at("ultraspeed").as_object(), out);
    PrintRow("first tenant", phase.at("first_tenant").as_object(), out);
    PrintRow("other tenants", phase.at("other_tenants").as_object(), out);
    for (const boost::json::value& tenant : phase.at("tenants").as_array())
      PrintRow(std::string("  ") + tenant.at("tenant").as_string().c_str(), tenant.as_object(),
               out);
  }
}

}  // namespace ultraspeed::bench
