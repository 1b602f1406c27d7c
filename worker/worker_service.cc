#include "worker/worker_service.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "common/limits.h"
#include "worker/generate_stream.h"

namespace ultraspeed::worker {
namespace {

grpc::ServerUnaryReactor* Reply(grpc::CallbackServerContext* context,
                                const absl::Status& status = absl::OkStatus()) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

v1::TerminalRecord ToProto(const std::string& id, const TerminalRecord& record) {
  v1::TerminalRecord message;
  message.set_request_id(id);
  *message.mutable_usage() = UsageToProto(record.usage);
  message.set_finish_reason(FinishReasonToProto(record.finish));
  message.set_tokens_per_second(record.tokens_per_second);
  message.set_resumed_tokens(static_cast<int32_t>(record.resumed_tokens));
  return message;
}

// Streams the tokenizer's bytes; deletes itself.
class TokenizerStream : public grpc::ServerWriteReactor<v1::TokenizerPart> {
 public:
  explicit TokenizerStream(const std::string& tokenizer) : tokenizer_(tokenizer) { WriteNext(); }
  void OnWriteDone(bool ok) override {
    if (ok) {
      WriteNext();
    } else {
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the caller has gone"));
    }
  }
  void OnDone() override { delete this; }

 private:
  void WriteNext() {
    if (offset_ == tokenizer_.size()) {
      Finish(grpc::Status::OK);
      return;
    }
    const size_t num_bytes = std::min(limits::kTokenizerPartBytes, tokenizer_.size() - offset_);
    part_.set_data(tokenizer_.data() + offset_, num_bytes);
    offset_ += num_bytes;
    StartWrite(&part_);
  }

  const std::string& tokenizer_;  // the service's
  size_t offset_ = 0;
  v1::TokenizerPart part_;
};

}  // namespace

WorkerService::WorkerService(Engine& engine, const ModelIdentity& identity,
                             std::function<void()> on_drain)
    : engine_(engine),
      identity_(identity),
      on_drain_(std::move(on_drain)),
      formats_(identity.tokenizer, engine.bounds().vocabulary, engine.config().eos_token_ids) {}

grpc::ServerWriteReactor<v1::WorkerGenerateChunk>* WorkerService::Generate(
    grpc::CallbackServerContext* /*context*/, const v1::WorkerGenerateRequest* request) {
  return GenerateStream::Start(engine_, formats_, records_, *request);
}

grpc::ServerUnaryReactor* WorkerService::Abort(grpc::CallbackServerContext* context,
                                               const v1::AbortRequest* request,
                                               v1::AbortResponse* /*response*/) {
  if (engine_.Cancel(request->request_id())) return Reply(context);
  // The id is not quoted: it is of any size and content.
  return Reply(context, absl::NotFoundError("request_id: no such request is running or waiting"));
}

grpc::ServerUnaryReactor* WorkerService::GetLoad(grpc::CallbackServerContext* context,
                                                 const v1::GetLoadRequest* /*request*/,
                                                 v1::GetLoadResponse* response) {
  const EngineLoad load = engine_.Load();
  response->set_running_requests(load.running);
  response->set_waiting_requests(load.waiting);
  response->set_max_running_requests(load.running_max);
  response->set_kv_tokens_used(load.kv_tokens_used);
  response->set_kv_tokens_max(load.kv_tokens_max);
  response->set_tokens_per_second(load.tokens_per_second);
  response->set_mean_acceptance_length(load.mean_acceptance_length);
  response->set_draining(load.draining);
  response->set_prompt_tokens_total(load.prompt_tokens_total);
  response->set_completion_tokens_total(load.completion_tokens_total);
  response->set_requests_total(load.requests_total);
  for (std::string& id : engine_.RunningIds()) response->add_running_request_ids(std::move(id));
  return Reply(context);
}

grpc::ServerUnaryReactor* WorkerService::GetModelInfo(grpc::CallbackServerContext* context,
                                                      const v1::GetModelInfoRequest* /*request*/,
                                                      v1::ModelInfo* response) {
  const ModelConfig& config = engine_.config();
  const RequestBounds bounds = engine_.bounds();
  response->set_name(config.name);
  response->set_context_tokens(bounds.context_tokens);
  response->set_vocabulary_size(bounds.vocabulary);
  response->set_draft_block_size(config.draft_block());
  response->mutable_eos_token_ids()->Add(config.eos_token_ids.begin(), config.eos_token_ids.end());
  response->set_chat_template_id("mimo_v2");
  response->set_enable_thinking_default(config.enable_thinking_default);
  response->set_default_temperature(config.default_temperature);
  response->set_default_top_p(config.default_top_p);
  response->set_tokenizer_sha256(identity_.tokenizer_sha256);
  response->set_weights_sha256(identity_.weights_sha256);
  response->set_device(engine_.device());
  return Reply(context);
}

grpc::ServerWriteReactor<v1::TokenizerPart>* WorkerService::GetTokenizer(
    grpc::CallbackServerContext* /*context*/, const v1::GetTokenizerRequest* /*request*/) {
  return new TokenizerStream(identity_.tokenizer);
}

grpc::ServerUnaryReactor* WorkerService::Drain(grpc::CallbackServerContext* context,
                                               const v1::DrainRequest* /*request*/,
                                               v1::DrainResponse* response) {
  engine_.Drain();
  on_drain_();
  const EngineLoad load = engine_.Load();
  response->set_running_requests(load.running + load.waiting);
  return Reply(context);
}

grpc::ServerUnaryReactor* WorkerService::ListRecords(grpc::CallbackServerContext* context,
                                                     const v1::ListRecordsRequest* request,
                                                     v1::ListRecordsResponse* response) {
  if (request->request_ids_size() > limits::kListRecordsMax) {
    return Reply(context, absl::InvalidArgumentError(
                              absl::StrCat("request_ids: ", request->request_ids_size(),
                                           " ids, at most ", limits::kListRecordsMax)));
  }
  for (const std::string& id : request->request_ids()) {
    if (records_.IsLive(id)) {
      response->add_live_request_ids(id);
    } else if (const auto record = records_.Find(id)) {
      *response->add_records() = ToProto(id, *record);
    }
  }
  return Reply(context);
}

}  // namespace ultraspeed::worker
