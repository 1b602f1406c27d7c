#include "worker/generate_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/grpc_status.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace ultraspeed::worker {
namespace {

absl::StatusOr<RequestSpec> ToSpec(const v1::WorkerGenerateRequest& request,
                                   OutputFormats& formats) {
  const v1::ServiceTier tier = request.service_tier();
  if (tier != v1::SERVICE_TIER_STANDARD && tier != v1::SERVICE_TIER_ULTRASPEED) {
    return absl::InvalidArgumentError(
        absl::StrCat("service_tier=", static_cast<int>(tier), ": must be SERVICE_TIER_STANDARD (",
                     static_cast<int>(v1::SERVICE_TIER_STANDARD), ") or SERVICE_TIER_ULTRASPEED (",
                     static_cast<int>(v1::SERVICE_TIER_ULTRASPEED), ")"));
  }
  ASSIGN_OR_RETURN(OutputGrammar output, formats.GrammarOf(request));
  return RequestSpec{
      .id = request.request_id(),
      .prompt = {request.prompt_token_ids().begin(), request.prompt_token_ids().end()},
      .max_tokens = request.max_tokens(),
      .sampling = {.temperature = request.temperature(),
                   .top_k = request.top_k(),
                   .top_p = request.top_p(),
                   .seed = request.seed()},
      .stop_token_ids = {request.stop_token_ids().begin(), request.stop_token_ids().end()},
      .speculation = request.speculation(),
      .tier = tier == v1::SERVICE_TIER_ULTRASPEED ? Tier::kUltraspeed : Tier::kStandard,
      .logprobs = request.logprobs(),
      .priority = request.priority(),
      .resumed_tokens = request.resumed_tokens(),
      .cache_scope = request.cache_scope(),
      .output = std::move(output),
      .begun_tokens = request.tool_calls().begun_tokens()};
}

void AddLogprob(const ChosenToken& chosen, v1::WorkerGenerateChunk* chunk) {
  v1::TokenLogprob* logprob = chunk->add_logprobs();
  logprob->set_token_id(chosen.token);
  logprob->set_logprob(chosen.logprob);
  logprob->mutable_top_token_ids()->Add(chosen.top_tokens.begin(), chosen.top_tokens.end());
  logprob->mutable_top_logprobs()->Add(chosen.top_logprobs.begin(), chosen.top_logprobs.end());
}

}  // namespace

v1::FinishReason FinishReasonToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case FinishReason::kNone:
    case FinishReason::kShutdown:
      break;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

v1::Usage UsageToProto(const UsageCounts& counts) {
  v1::Usage usage;
  usage.set_prompt_tokens(counts.prompt_tokens);
  usage.set_cached_tokens(counts.cached_tokens);
  usage.set_completion_tokens(counts.completion_tokens);
  usage.set_draft_rounds(counts.draft_rounds);
  return usage;
}

GenerateStream* GenerateStream::Start(Engine& engine, OutputFormats& formats,
                                      TerminalRecords& records,
                                      const v1::WorkerGenerateRequest& request) {
  const std::shared_ptr<GenerateStream> stream(
      new GenerateStream(engine, records, request.request_id()));
  stream->self_ = stream;
  stream->with_logprobs_ = request.logprobs() >= 0;
  stream->resumed_tokens_ = request.resumed_tokens();
  absl::StatusOr<RequestSpec> spec = ToSpec(request, formats);
  records.Begin(request.request_id());  // first: events may come before Submit returns
  const absl::Status status = spec.ok() ? engine.Submit(*std::move(spec), stream) : spec.status();
  if (!status.ok()) {
    records.Withdraw(request.request_id());
    stream->Refuse(ToGrpcStatus(status));
  }
  return stream.get();
}

void GenerateStream::Refuse(const grpc::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    ended_ = finished_ = true;
  }
  Finish(status);
}

void GenerateStream::Record(const TokenEvent& event) {
  if (!event.tokens.empty()) {
    last_tokens_at_ = RealClock().Monotonic();
    if (num_first_tokens_ == 0) {
      first_tokens_at_ = last_tokens_at_;
      num_first_tokens_ = static_cast<int64_t>(event.tokens.size());
    }
  }
  if (event.finish == FinishReason::kNone) return;
  const int64_t num_tokens = event.usage.completion_tokens - num_first_tokens_;
  const double seconds = absl::ToDoubleSeconds(last_tokens_at_ - first_tokens_at_);
  records_.End(request_id_,
               {.usage = event.usage,
                .finish = event.finish,
                .tokens_per_second =
                    num_tokens > 0 && seconds > 0 ? static_cast<double>(num_tokens) / seconds : 0,
                .resumed_tokens = resumed_tokens_});
}

void GenerateStream::OnTokens(TokenEvent event) {
  Record(event);
  Action action;
  {
    absl::MutexLock lock(&mutex_);
    Merge(std::move(event));
    action = Next();
  }
  Perform(action);
}

void GenerateStream::OnWriteDone(bool /*ok*/) {
  // A failed write means that the caller has gone: OnCancel comes or has come.
  Action action;
  {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    action = Next();
  }
  Perform(action);
}

void GenerateStream::OnCancel() {
  Action action;
  bool running;
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    running = !ended_;
    action = Next();
  }
  if (running) engine_.Cancel(request_id_);
  Perform(action);
}

void GenerateStream::OnDone() { const std::shared_ptr<GenerateStream> last = std::move(self_); }

void GenerateStream::Merge(TokenEvent event) {
  if (cancelled_) {  // nobody reads any more
    ended_ = ended_ || event.finish != FinishReason::kNone;
    return;
  }
  ended_ = event.finish != FinishReason::kNone;
  if (event.finish == FinishReason::kCancelled)
    status_ = grpc::Status(grpc::StatusCode::CANCELLED, "the request was aborted");
  if (event.finish == FinishReason::kShutdown)
    status_ = grpc::Status(grpc::StatusCode::UNAVAILABLE, "the worker is shutting down");
  if (event.tokens.empty() && FinishReasonToProto(event.finish) == v1::FINISH_REASON_UNSPECIFIED)
    return;
  const int num_tokens = static_cast<int>(event.tokens.size());
  if (pending_.empty() || pending_.back().token_ids_size() + num_tokens > limits::kChunkTokensMax)
    pending_.emplace_back();
  v1::WorkerGenerateChunk& chunk = pending_.back();
  for (const ChosenToken& chosen : event.tokens) {
    chunk.add_token_ids(chosen.token);
    if (with_logprobs_) AddLogprob(chosen, &chunk);
  }
  *chunk.mutable_usage() = UsageToProto(event.usage);
  chunk.set_finish_reason(FinishReasonToProto(event.finish));
  if (event.finish == FinishReason::kStop) chunk.set_stop_token_id(event.stop_token);
}

GenerateStream::Action GenerateStream::Next() {
  if (writing_ || finished_) return Action::kNone;
  if (cancelled_) {
    finished_ = true;
    status_ = grpc::Status(grpc::StatusCode::CANCELLED, "the caller has gone");
    return Action::kFinish;
  }
  if (pending_.empty()) {
    finished_ = ended_;
    return ended_ ? Action::kFinish : Action::kNone;
  }
  current_.Swap(&pending_.front());
  pending_.pop_front();
  writing_ = true;
  finished_ = ended_ && pending_.empty();
  return finished_ ? Action::kWriteLast : Action::kWrite;
}

void GenerateStream::Perform(Action action) {
  switch (action) {
    case Action::kNone:
      return;
    case Action::kWrite:
      StartWrite(&current_);
      return;
    case Action::kWriteLast:
      StartWriteAndFinish(&current_, grpc::WriteOptions(), status_);
      return;
    case Action::kFinish:
      Finish(status_);
      return;
  }
}

}  // namespace ultraspeed::worker
