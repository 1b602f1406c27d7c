#include "tests/fake_worker/fake_worker.h"

#include <openssl/sha.h>

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace ultraspeed::testing {
namespace {

constexpr size_t kPartBytes = 100'000;

std::string Sha256Hex(const std::string& bytes) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<char*>(digest), sizeof digest));
}

// Writes the steps but for tokens that the request says it has already; false when the call was
// cancelled or broke.
bool WriteSteps(const v1::WorkerGenerateRequest& request, const std::vector<FakeStep>& steps,
                grpc::ServerContext* context, FakeWorker::Writer* writer, v1::Usage* usage) {
  usage->set_prompt_tokens(request.prompt_token_ids_size());
  size_t num_had = static_cast<size_t>(request.resumed_tokens());
  for (const FakeStep& step : steps) {
    const size_t num_skipped = std::min(num_had, step.token_ids.size());
    num_had -= num_skipped;
    if (num_skipped > 0 && num_skipped == step.token_ids.size()) continue;
    if (!SleepUnlessCancelled(context, step.delay)) return false;
    v1::WorkerGenerateChunk chunk;
    chunk.mutable_token_ids()->Add(step.token_ids.begin() + static_cast<ptrdiff_t>(num_skipped),
                                   step.token_ids.end());
    usage->set_completion_tokens(usage->completion_tokens() + chunk.token_ids_size());
    usage->set_draft_rounds(usage->draft_rounds() + 1);
    *chunk.mutable_usage() = *usage;
    if (!writer->Write(chunk)) return false;
  }
  return true;
}

}  // namespace

bool SleepUnlessCancelled(grpc::ServerContext* context, absl::Duration duration) {
  const absl::Time end = absl::Now() + duration;
  while (!context->IsCancelled()) {
    const absl::Duration left = end - absl::Now();
    if (left <= absl::ZeroDuration()) return true;
    absl::SleepFor(std::min(left, absl::Milliseconds(2)));
  }
  return false;
}

FakeWorker::FakeWorker(Options options) : options_(std::move(options)), script_(options_.script) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort(absl::StrCat("127.0.0.1:", options_.port),
                           grpc::InsecureServerCredentials(), &port_);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
}

FakeWorker::~FakeWorker() { Kill(); }

void FakeWorker::Kill() {
  if (server_ == nullptr) return;
  server_->Shutdown(absl::ToChronoTime(absl::Now()));
  server_->Wait();
  server_.reset();
}

std::string FakeWorker::address() const { return absl::StrCat("127.0.0.1:", port_); }

void FakeWorker::SetScript(Script script) {
  absl::MutexLock lock(&mutex_);
  script_ = std::move(script);
}

void FakeWorker::SetControlDelay(absl::Duration delay) {
  control_delay_ms_ = absl::ToInt64Milliseconds(delay);
}

void FakeWorker::DelayControl() const {
  absl::SleepFor(absl::Milliseconds(control_delay_ms_.load()));
}

v1::WorkerGenerateRequest FakeWorker::last_request() const {
  absl::MutexLock lock(&mutex_);
  return last_request_;
}

std::map<std::string, v1::TerminalRecord> FakeWorker::records() const {
  absl::MutexLock lock(&mutex_);
  return records_;
}

FakeWorker::Writer::Writer(const v1::WorkerGenerateRequest& request,
                           grpc::ServerWriter<v1::WorkerGenerateChunk>* writer)
    : writer_(writer) {
  record_.set_request_id(request.request_id());
  record_.set_resumed_tokens(request.resumed_tokens());
  record_.mutable_usage()->set_prompt_tokens(request.prompt_token_ids_size());
}

bool FakeWorker::Writer::Write(const v1::WorkerGenerateChunk& chunk) {
  *record_.mutable_usage() = chunk.usage();
  record_.set_finish_reason(chunk.finish_reason());
  const absl::Time now = absl::Now();
  if (chunk.token_ids_size() > 0 && num_first_tokens_ == 0) {
    num_first_tokens_ = chunk.token_ids_size();
    first_tokens_ = now;
  } else if (chunk.token_ids_size() > 0 && now > first_tokens_) {
    record_.set_tokens_per_second(
        static_cast<double>(chunk.usage().completion_tokens() - num_first_tokens_) /
        absl::ToDoubleSeconds(now - first_tokens_));
  }
  is_gone_ = !writer_->Write(chunk);
  return !is_gone_;
}

grpc::Status FakeWorker::Generate(grpc::ServerContext* context,
                                  const v1::WorkerGenerateRequest* request,
                                  grpc::ServerWriter<v1::WorkerGenerateChunk>* writer) {
  Script script;
  {
    absl::MutexLock lock(&mutex_);
    last_request_ = *request;
    live_.insert(request->request_id());
    script = script_;
  }
  ++num_requests_;
  ++num_running_;
  Writer recording(*request, writer);
  const grpc::Status status = script(*request, context, &recording);
  const bool is_cancelled = recording.is_gone() || context->IsCancelled();
  if (is_cancelled) ++num_cancelled_;
  --num_running_;
  absl::MutexLock lock(&mutex_);
  live_.erase(request->request_id());
  v1::TerminalRecord& record = records_[request->request_id()];
  record = recording.record();
  if (record.finish_reason() == v1::FINISH_REASON_UNSPECIFIED && is_cancelled)
    record.set_finish_reason(v1::FINISH_REASON_CANCELLED);
  return status;
}

grpc::Status FakeWorker::ListRecords(grpc::ServerContext*, const v1::ListRecordsRequest* request,
                                     v1::ListRecordsResponse* response) {
  absl::MutexLock lock(&mutex_);
  for (const std::string& id : request->request_ids()) {
    if (live_.count(id) > 0) {
      response->add_live_request_ids(id);
    } else if (const auto found = records_.find(id); found != records_.end()) {
      *response->add_records() = found->second;
    }
  }
  return grpc::Status::OK;
}

grpc::Status FakeWorker::GetLoad(grpc::ServerContext*, const v1::GetLoadRequest*,
                                 v1::GetLoadResponse* response) {
  DelayControl();
  response->set_running_requests(num_running_);
  response->set_max_running_requests(options_.max_running_requests);
  response->set_draining(draining_);
  return grpc::Status::OK;
}

grpc::Status FakeWorker::GetModelInfo(grpc::ServerContext*, const v1::GetModelInfoRequest*,
                                      v1::ModelInfo* response) {
  DelayControl();
  response->set_name(options_.model);
  response->set_context_tokens(options_.context_tokens);
  response->set_vocabulary_size(1 << 20);
  response->set_draft_block_size(8);
  response->set_chat_template_id("mimo_v2");
  response->set_default_temperature(1);
  response->set_default_top_p(1);
  response->set_tokenizer_sha256(
      options_.wrong_tokenizer_hash ? std::string(64, '0') : Sha256Hex(options_.tokenizer_json));
  response->set_weights_sha256(options_.weights_sha256);
  response->set_device("fake");
  return grpc::Status::OK;
}

grpc::Status FakeWorker::GetTokenizer(grpc::ServerContext*, const v1::GetTokenizerRequest*,
                                      grpc::ServerWriter<v1::TokenizerPart>* writer) {
  for (size_t offset = 0; offset < options_.tokenizer_json.size(); offset += kPartBytes) {
    v1::TokenizerPart part;
    part.set_data(options_.tokenizer_json.substr(offset, kPartBytes));
    if (!writer->Write(part)) break;
  }
  return grpc::Status::OK;
}

FakeWorker::Script PlaySteps(std::vector<FakeStep> steps, v1::FinishReason finish) {
  return
      [steps = std::move(steps), finish](const v1::WorkerGenerateRequest& request,
                                         grpc::ServerContext* context, FakeWorker::Writer* writer) {
        v1::WorkerGenerateChunk last;
        if (!WriteSteps(request, steps, context, writer, last.mutable_usage()))
          return grpc::Status::CANCELLED;
        last.set_finish_reason(finish);
        writer->Write(last);
        return grpc::Status::OK;
      };
}

FakeWorker::Script PlayStepsThenFail(std::vector<FakeStep> steps, grpc::Status status) {
  return [steps = std::move(steps), status = std::move(status)](
             const v1::WorkerGenerateRequest& request, grpc::ServerContext* context,
             FakeWorker::Writer* writer) {
    v1::Usage usage;
    WriteSteps(request, steps, context, writer, &usage);
    return status;
  };
}

FakeWorker::Script PlayStepsThenHang(std::vector<FakeStep> steps) {
  return [steps = std::move(steps)](const v1::WorkerGenerateRequest& request,
                                    grpc::ServerContext* context, FakeWorker::Writer* writer) {
    v1::Usage usage;
    WriteSteps(request, steps, context, writer, &usage);
    SleepUnlessCancelled(context, absl::InfiniteDuration());
    return grpc::Status::CANCELLED;
  };
}

}  // namespace ultraspeed::testing
