#include "router/worker_pool.h"

#include <openssl/evp.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/grpc_status.h"
#include "common/limits.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"
#include "router/routing_policy.h"

namespace ultraspeed::router {
namespace {

constexpr int kPollsPerModelCheck = 20;
constexpr absl::Duration kTokenizerTimeout = absl::Seconds(60);
constexpr absl::Duration kRefusedRetry = absl::Seconds(2);

std::string Sha256Hex(const std::string& bytes) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int digest_bytes = 0;
  EVP_Digest(bytes.data(), bytes.size(), digest, &digest_bytes, EVP_sha256(), nullptr);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<char*>(digest), digest_bytes));
}

grpc::ChannelArguments WorkerChannelArguments() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(limits::kGrpcMessageBytesMax);
  arguments.SetMaxSendMessageSize(limits::kGrpcMessageBytesMax);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 500);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // A host that vanishes sends no FIN. Load polls keep data flowing, so these pings stay within
  // every server's patience.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 5000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 3000);
  // Tokens are few bytes: a fixed window bounds what a stream that is not read can pile up here,
  // and saves the probe's pings.
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  // One connection per worker entry with its own back-off, even if two entries name one address.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return arguments;
}

absl::Status CheckModelInfo(const v1::ModelInfo& info) {
  if (info.name().empty() || info.name().size() > limits::kModelNameBytesMax) {
    return absl::FailedPreconditionError(absl::StrCat(
        "model name of ", info.name().size(), " bytes: must be 1..", limits::kModelNameBytesMax));
  }
  if (info.context_tokens() < 2 || info.vocabulary_size() < 1) {
    return absl::FailedPreconditionError(absl::StrCat("context_tokens=", info.context_tokens(),
                                                      ", vocabulary_size=", info.vocabulary_size(),
                                                      ": must be at least 2 and 1"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::string_view WorkerStateName(WorkerState state) {
  switch (state) {
    case WorkerState::kConnecting:
      return "connecting";
    case WorkerState::kReady:
      return "ready";
    case WorkerState::kDraining:
      return "draining";
    case WorkerState::kLost:
      return "lost";
    case WorkerState::kRefused:
      return "refused";
  }
  return "unknown";
}

// Fields after `thread` are guarded by the pool's mutex.
struct WorkerPool::Worker {
  int idx = 0;
  std::string address;
  std::unique_ptr<v1::Worker::Stub> stub;
  std::thread thread;

  WorkerState state = WorkerState::kConnecting;
  std::shared_ptr<const ServedModel> model;  // null until ready
  int64_t other_requests = 0;                // as WorkerCandidate has it
  int64_t max_running_requests = 0;
  absl::Duration load_time = -absl::InfiniteDuration();   // when the last report was asked for
  absl::Duration doubt_time = -absl::InfiniteDuration();  // of the last Doubt
  absl::flat_hash_map<uint64_t, std::function<void()>> leases;  // callback may be empty
  grpc::ClientContext* control_context = nullptr;               // of the control call that runs now

  bool takes_requests() const { return state == WorkerState::kReady && load_time >= doubt_time; }
};

// ---- Leases ----

WorkerPool::Lease::Lease(Lease&& other) noexcept { *this = std::move(other); }

WorkerPool::Lease& WorkerPool::Lease::operator=(Lease&& other) noexcept {
  if (this == &other) return *this;
  Release();
  pool_ = std::exchange(other.pool_, nullptr);
  worker_ = std::exchange(other.worker_, nullptr);
  id_ = std::exchange(other.id_, 0);
  return *this;
}

void WorkerPool::Lease::Release() {
  if (pool_ == nullptr) return;
  std::exchange(pool_, nullptr)->ReleaseLease(worker_, id_);
}

v1::Worker::Stub* WorkerPool::Lease::stub() const { return worker_->stub.get(); }
const std::string& WorkerPool::Lease::address() const { return worker_->address; }
int WorkerPool::Lease::worker_idx() const { return worker_->idx; }

void WorkerPool::Lease::OnLost(std::function<void()> callback) {
  bool lost_already = false;
  {
    absl::MutexLock lock(&pool_->mutex_);
    lost_already = worker_->state == WorkerState::kLost;
    if (!lost_already) worker_->leases[id_] = std::move(callback);
  }
  if (lost_already) callback();
}

void WorkerPool::ReleaseLease(Worker* worker, uint64_t lease_id) {
  absl::MutexLock lock(&mutex_);
  worker->leases.erase(lease_id);
  --num_leases_;
}

absl::StatusOr<WorkerPool::Lease> WorkerPool::Acquire(const ServedModel& model,
                                                      const absl::flat_hash_set<int>& excluded,
                                                      uint64_t preferred) {
  absl::MutexLock lock(&mutex_);
  const absl::Duration now = options_.clock->Monotonic();
  std::vector<WorkerCandidate> candidates(workers_.size());
  for (const auto& worker : workers_) {
    candidates[worker->idx] = {.eligible = worker->takes_requests() &&
                                           worker->model.get() == &model &&
                                           !excluded.contains(worker->idx),
                               .load_is_stale = now - worker->load_time > options_.load_stale_after,
                               .other_requests = worker->other_requests,
                               .own_requests = static_cast<int64_t>(worker->leases.size()),
                               .max_running_requests = worker->max_running_requests};
  }
  const std::optional<int> chosen = ChooseWorker(candidates, preferred);
  if (!chosen) {
    return absl::UnavailableError(absl::StrCat("model ", model.facts.name, ": no worker is ready"));
  }
  Lease lease;
  lease.pool_ = this;
  lease.worker_ = workers_[*chosen].get();
  lease.id_ = next_lease_id_++;
  ++num_leases_;
  lease.worker_->leases[lease.id_] = nullptr;
  return lease;
}

void WorkerPool::Doubt(const Lease& lease) {
  {
    absl::MutexLock lock(&mutex_);
    lease.worker_->doubt_time = options_.clock->Monotonic();
  }
  ReportCapacity(lease.worker_);
}

// ---- What is served ----

absl::StatusOr<std::shared_ptr<const ServedModel>> WorkerPool::FindModel(
    absl::string_view name) const {
  absl::MutexLock lock(&mutex_);
  const auto found = models_.find(name);
  if (found != models_.end()) return found->second;
  const std::string available =
      absl::StrJoin(models_, ", ",
                    [](std::string* out, const auto& entry) { absl::StrAppend(out, entry.first); });
  return absl::NotFoundError(absl::StrCat("model=", name, ": not served here; available: ",
                                          available.empty() ? "none yet" : available));
}

std::vector<WorkerPool::ModelStatus> WorkerPool::Models() const {
  absl::MutexLock lock(&mutex_);
  std::vector<ModelStatus> result;
  for (const auto& [name, model] : models_) {
    const auto num_ready =
        std::count_if(workers_.begin(), workers_.end(), [&model = model](const auto& worker) {
          return worker->state == WorkerState::kReady && worker->model == model;
        });
    result.push_back({.model = model, .workers_ready = static_cast<int>(num_ready)});
  }
  return result;
}

std::array<int, kNumWorkerStates> WorkerPool::CountStates() const {
  absl::MutexLock lock(&mutex_);
  std::array<int, kNumWorkerStates> counts{};
  for (const auto& worker : workers_) counts[static_cast<int>(worker->state)]++;
  return counts;
}

bool WorkerPool::AnyReady() const {
  return CountStates()[static_cast<int>(WorkerState::kReady)] > 0;
}

bool WorkerPool::AnyReady(const ServedModel& model) const {
  absl::MutexLock lock(&mutex_);
  return std::any_of(workers_.begin(), workers_.end(), [&model](const auto& worker) {
    return worker->takes_requests() && worker->model.get() == &model;
  });
}

void WorkerPool::ReportCapacity(const Worker* worker) {
  if (!options_.on_capacity) return;
  absl::MutexLock order(&capacity_mutex_);
  QueueCapacity capacity;
  std::string model;
  {
    absl::MutexLock lock(&mutex_);
    if (worker->model == nullptr || closing_) return;
    model = worker->model->facts.name;
    for (const auto& other : workers_) {
      if (!other->takes_requests() || other->model != worker->model) continue;
      capacity = capacity + CapacityOfWorker(other->max_running_requests, other->other_requests);
    }
  }
  options_.on_capacity(model, capacity);
}

// ---- How requests ended ----

std::vector<WorkerPool::WorkerRecords> WorkerPool::ListRecords(
    const std::vector<std::string>& request_ids) const {
  std::vector<const Worker*> reachable;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& worker : workers_) {
      if (worker->state == WorkerState::kReady || worker->state == WorkerState::kDraining)
        reachable.push_back(worker.get());
    }
  }
  std::vector<WorkerRecords> all;
  for (const Worker* worker : reachable) {
    for (size_t begin = 0; begin < request_ids.size(); begin += limits::kListRecordsMax) {
      const size_t end = std::min(request_ids.size(), begin + limits::kListRecordsMax);
      v1::ListRecordsRequest request;
      for (size_t i = begin; i < end; ++i) request.add_request_ids(request_ids[i]);
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() +
                           absl::ToChronoMicroseconds(options_.call_timeout));
      WorkerRecords records{.address = worker->address, .response = {}};
      if (!worker->stub->ListRecords(&context, request, &records.response).ok()) break;
      all.push_back(std::move(records));
    }
  }
  return all;
}

// ---- Start and end ----

absl::Status WorkerPool::Options::Validate() const {
  if (addresses.empty() || addresses.size() > limits::kWorkersMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "worker: ", addresses.size(), " addresses given, must be 1..", limits::kWorkersMax));
  }
  absl::flat_hash_set<std::string> seen;
  for (const std::string& address : addresses) {
    if (address.empty()) return absl::InvalidArgumentError("worker: empty address");
    if (!seen.insert(address).second)
      return absl::InvalidArgumentError(absl::StrCat("worker=", address, ": given twice"));
  }
  return absl::OkStatus();
}

WorkerPool::WorkerPool(Options options) : options_(std::move(options)) {}

absl::StatusOr<std::unique_ptr<WorkerPool>> WorkerPool::Create(Options options) {
  RETURN_IF_ERROR(options.Validate());
  std::unique_ptr<WorkerPool> pool(new WorkerPool(std::move(options)));
  RETURN_IF_ERROR(pool->Start());
  return pool;
}

absl::Status WorkerPool::Start() {
  for (const std::string& address : options_.addresses) {
    ASSIGN_OR_RETURN(auto credentials, CreateChannelCredentials(options_.tls, address));
    auto worker = std::make_unique<Worker>();
    worker->idx = static_cast<int>(workers_.size());
    worker->address = address;
    worker->stub = v1::Worker::NewStub(
        grpc::CreateCustomChannel(address, credentials, WorkerChannelArguments()));
    workers_.push_back(std::move(worker));
  }
  for (const auto& worker : workers_) {
    worker->thread = std::thread([this, worker = worker.get()] { RunControl(worker); });
  }
  return absl::OkStatus();
}

WorkerPool::~WorkerPool() {
  {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
    for (const auto& worker : workers_) {
      if (worker->control_context != nullptr) worker->control_context->TryCancel();
    }
  }
  for (const auto& worker : workers_) {
    if (worker->thread.joinable()) worker->thread.join();
  }
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(
      +[](int64_t* num_leases) { return *num_leases == 0; }, &num_leases_));
}

// ---- Control thread of one worker ----

bool WorkerPool::Sleep(absl::Duration duration) const {
  absl::MutexLock lock(&mutex_);
  return !mutex_.AwaitWithTimeout(absl::Condition(&closing_), duration);
}

absl::Status WorkerPool::ControlCall(
    Worker* worker, absl::Duration timeout,
    const std::function<grpc::Status(grpc::ClientContext*)>& call) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMicroseconds(timeout));
  {
    absl::MutexLock lock(&mutex_);
    if (closing_) return absl::CancelledError("closing");
    worker->control_context = &context;
  }
  const grpc::Status status = call(&context);
  absl::MutexLock lock(&mutex_);
  worker->control_context = nullptr;
  return FromGrpcStatus(status);
}

void WorkerPool::SetState(Worker* worker, WorkerState state, const absl::Status& reason) {
  std::vector<std::function<void()>> on_lost;
  {
    absl::MutexLock lock(&mutex_);
    if (worker->state == state) return;
    worker->state = state;
    if (state == WorkerState::kLost) {
      for (auto& [id, callback] : worker->leases) {
        if (callback) on_lost.push_back(std::exchange(callback, nullptr));
      }
    }
    if (closing_) return;
  }
  for (const auto& callback : on_lost) callback();
  ReportCapacity(worker);
  const bool is_bad = state == WorkerState::kLost || state == WorkerState::kRefused;
  Log(is_bad ? LogLevel::kWarning : LogLevel::kInfo, "router.worker_state",
      {{"worker", worker->address},
       {"state", WorkerStateName(state)},
       {"reason", std::string(reason.message())}});
}

void WorkerPool::RunControl(Worker* worker) {
  absl::Duration backoff = options_.backoff_min;
  for (;;) {
    const absl::Status status = Handshake(worker);
    if (status.ok()) {
      backoff = options_.backoff_min;
      PollLoad(worker);
    } else if (status.code() == absl::StatusCode::kFailedPrecondition) {
      SetState(worker, WorkerState::kRefused, status);
      backoff = kRefusedRetry;
    } else {
      absl::MutexLock lock(
          &mutex_);  // not reachable: connecting or lost, as before; refused ones are lost now
      if (worker->state != WorkerState::kConnecting) worker->state = WorkerState::kLost;
    }
    if (!Sleep(backoff)) return;
    backoff = std::min(backoff * 2, options_.backoff_max);
  }
}

absl::Status WorkerPool::Handshake(Worker* worker) {
  v1::ModelInfo info;
  RETURN_IF_ERROR(ControlCall(worker, options_.call_timeout, [&](grpc::ClientContext* context) {
    return worker->stub->GetModelInfo(context, v1::GetModelInfoRequest(), &info);
  }));
  RETURN_IF_ERROR(CheckModelInfo(info));
  ASSIGN_OR_RETURN(auto tokenizer, FetchTokenizer(worker, info.tokenizer_sha256()));
  auto model = std::make_shared<ServedModel>();
  model->facts = {.name = info.name(),
                  .context_tokens = info.context_tokens(),
                  .vocabulary_size = info.vocabulary_size(),
                  .default_temperature = info.default_temperature(),
                  .default_top_p = info.default_top_p(),
                  .enable_thinking_default = info.enable_thinking_default()};
  model->draft_block_size = info.draft_block_size();
  model->eos_token_ids.assign(info.eos_token_ids().begin(), info.eos_token_ids().end());
  model->chat_template = ChatTemplate::Create(info.chat_template_id(), *tokenizer);
  model->reasoning_marks = FindReasoningMarks(*tokenizer);
  model->tokenizer = std::move(tokenizer);
  model->tokenizer_sha256 = info.tokenizer_sha256();
  model->weights_sha256 = info.weights_sha256();
  return Admit(worker, std::move(model));
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> WorkerPool::FetchTokenizer(
    Worker* worker, const std::string& sha256) {
  {
    absl::MutexLock lock(&mutex_);
    if (auto known = tokenizers_[sha256].lock()) return known;
  }
  std::string json;
  bool too_large = false;
  const absl::Status status =
      ControlCall(worker, kTokenizerTimeout, [&](grpc::ClientContext* context) {
        auto reader = worker->stub->GetTokenizer(context, v1::GetTokenizerRequest());
        v1::TokenizerPart part;
        while (reader->Read(&part)) {
          too_large = json.size() + part.data().size() > limits::kTokenizerBytesMax;
          if (too_large) context->TryCancel();
          if (!too_large) json.append(part.data());
        }
        return reader->Finish();
      });
  if (too_large) {
    return absl::FailedPreconditionError(
        absl::StrCat("tokenizer: more than ", limits::kTokenizerBytesMax, " bytes"));
  }
  RETURN_IF_ERROR(status);
  const std::string actual = Sha256Hex(json);
  if (actual != sha256) {
    return absl::FailedPreconditionError(
        absl::StrCat("tokenizer: sha256 is ", actual, ", the model's facts say ", sha256));
  }
  auto created = Tokenizer::Create(json);
  if (!created.ok()) {
    return absl::FailedPreconditionError(absl::StrCat("tokenizer: ", created.status().message()));
  }
  std::shared_ptr<const Tokenizer> tokenizer = *std::move(created);
  absl::MutexLock lock(&mutex_);
  std::weak_ptr<const Tokenizer>& entry = tokenizers_[sha256];
  if (auto other = entry.lock()) return other;
  entry = tokenizer;
  return tokenizer;
}

absl::Status WorkerPool::Admit(Worker* worker, std::shared_ptr<const ServedModel> model) {
  {
    absl::MutexLock lock(&mutex_);
    std::shared_ptr<const ServedModel>& current = models_[model->facts.name];
    const bool same = current != nullptr && current->tokenizer_sha256 == model->tokenizer_sha256 &&
                      current->weights_sha256 == model->weights_sha256 &&
                      current->facts.context_tokens == model->facts.context_tokens &&
                      current->facts.vocabulary_size == model->facts.vocabulary_size;
    if (!same) {
      for (const auto& other : workers_) {
        const bool serves =
            other->state == WorkerState::kReady || other->state == WorkerState::kDraining;
        if (other.get() == worker || !serves || other->model != current) continue;
        return absl::FailedPreconditionError(absl::StrCat(
            "model ", model->facts.name, " differs from that of ", other->address, ": weights ",
            model->weights_sha256, " and ", current->weights_sha256, ", tokenizer ",
            model->tokenizer_sha256, " and ", current->tokenizer_sha256, ", context ",
            model->facts.context_tokens, " and ", current->facts.context_tokens));
      }
      current = std::move(model);
    }
    worker->model = current;
    worker->other_requests = 0;
    worker->max_running_requests = 0;
    worker->load_time = -absl::InfiniteDuration();
    worker->doubt_time = -absl::InfiniteDuration();
  }
  SetState(worker, WorkerState::kReady, absl::OkStatus());
  return absl::OkStatus();
}

absl::Status WorkerPool::CheckModelUnchanged(Worker* worker) {
  v1::ModelInfo info;
  RETURN_IF_ERROR(ControlCall(worker, options_.call_timeout, [&](grpc::ClientContext* context) {
    return worker->stub->GetModelInfo(context, v1::GetModelInfoRequest(), &info);
  }));
  absl::MutexLock lock(&mutex_);
  if (info.name() != worker->model->facts.name ||
      info.weights_sha256() != worker->model->weights_sha256 ||
      info.tokenizer_sha256() != worker->model->tokenizer_sha256) {
    return absl::UnavailableError("the worker serves another model now");
  }
  return absl::OkStatus();
}

void WorkerPool::PollLoad(Worker* worker) {
  int num_failures = 0;
  for (uint64_t num_polls = 1;; ++num_polls) {
    v1::GetLoadResponse load;
    const absl::Duration asked = options_.clock->Monotonic();
    size_t own_requests = 0;
    {
      absl::MutexLock lock(&mutex_);
      own_requests = worker->leases.size();
    }
    absl::Status status =
        ControlCall(worker, options_.call_timeout, [&](grpc::ClientContext* context) {
          return worker->stub->GetLoad(context, v1::GetLoadRequest(), &load);
        });
    if (status.ok() && num_polls % kPollsPerModelCheck == 0) status = CheckModelUnchanged(worker);
    if (status.ok()) {
      num_failures = 0;
      const bool draining = load.draining();
      {
        absl::MutexLock lock(&mutex_);
        // Own requests that came or went while the report was on its way may or may not be in it:
        // subtract the larger count, so that none of them is taken for another router's.
        own_requests = std::max(own_requests, worker->leases.size());
        const int64_t reported = int64_t{load.running_requests()} + load.waiting_requests();
        worker->other_requests =
            std::max<int64_t>(0, reported - static_cast<int64_t>(own_requests));
        worker->max_running_requests = load.max_running_requests();
        worker->load_time = asked;
      }
      SetState(worker, draining ? WorkerState::kDraining : WorkerState::kReady, absl::OkStatus());
      ReportCapacity(worker);
    } else if (absl::IsUnavailable(status) || ++num_failures >= options_.timeouts_until_lost) {
      SetState(worker, WorkerState::kLost, status);
      return;
    }
    if (!Sleep(options_.load_interval)) return;
  }
}

}  // namespace ultraspeed::router
