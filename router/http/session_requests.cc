// What a session does with one request: checks its head, makes the call, tells what comes of it.
#include <boost/beast/http/field.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "router/http/anthropic_request.h"
#include "router/http/openai_lists.h"
#include "router/http/openai_request.h"
#include "router/http/responses_request.h"
#include "router/http/session.h"

namespace ultraspeed::router {
namespace {

namespace http = boost::beast::http;

// "application/json" of "Application/JSON; charset=utf-8".
std::string MediaType(absl::string_view content_type) {
  return absl::AsciiStrToLower(
      absl::StripAsciiWhitespace(content_type.substr(0, content_type.find(';'))));
}

HttpError Malformed(std::string message) {
  return {.kind = ErrorKind::kInvalidRequest, .message = std::move(message)};
}

}  // namespace

// ---- Its head ----

std::optional<HttpError> Session::CheckHead() {
  const Message& message = parser_->get();
  if (message.version() >= 11 && message.count(http::field::host) != 1) {
    return Malformed(absl::StrCat("header Host comes ", message.count(http::field::host),
                                  " times; it must come once"));
  }
  if (message.count(http::field::transfer_encoding) > 0 &&
      (!parser_->chunked() || message.version() < 11)) {
    return Malformed("header Transfer-Encoding is not \"chunked\" of HTTP/1.1; no other is taken");
  }
  if (target_.route == Route::kNone) {
    return HttpError{.kind = ErrorKind::kPathNotFound, .message = "there is nothing at this path"};
  }
  const absl::string_view allowed = AllowedMethod(target_.route);
  const absl::string_view method = ToView(message.method_string());
  if (method != allowed && !(method == "HEAD" && allowed == "GET")) {
    headers_.emplace_back("allow", allowed == "GET" ? "GET, HEAD" : std::string(allowed));
    return HttpError{.kind = ErrorKind::kMethodNotAllowed,
                     .message = absl::StrCat("this path takes ", allowed, " only")};
  }
  const absl::string_view expect = ToView(message[http::field::expect]);
  if (!expect.empty() && !absl::EqualsIgnoreCase(expect, "100-continue")) {
    return HttpError{.kind = ErrorKind::kExpectationFailed,
                     .message = "header Expect is not 100-continue; no other is taken"};
  }
  if (allowed == "POST") {
    // A browser's form cannot send this type to another site, so no page makes calls here.
    const std::string type = MediaType(ToView(message[http::field::content_type]));
    if (!type.empty() && type != "application/json") {
      return HttpError{.kind = ErrorKind::kUnsupportedMediaType,
                       .message = "header Content-Type is not application/json; no other is taken"};
    }
    const absl::string_view encoding = ToView(message[http::field::content_encoding]);
    if (!encoding.empty() && !absl::EqualsIgnoreCase(encoding, "identity")) {
      return HttpError{.kind = ErrorKind::kUnsupportedMediaType,
                       .message = "header Content-Encoding is not identity; no other is taken"};
    }
  }
  return std::nullopt;
}

HttpHeaders Session::CallersMetadata() const {
  const Message& message = parser_->get();
  HttpHeaders metadata;
  const auto add = [&](absl::string_view name, const char* metadata_name) {
    const absl::string_view value =
        ToView(message[boost::beast::string_view(name.data(), name.size())]);
    if (value.empty() || !IsPlainHeaderValue(value) || !ValueOf(metadata, metadata_name).empty()) {
      return;
    }
    metadata.emplace_back(metadata_name, std::string(value));
  };
  add("authorization", "authorization");
  add("api-key", "api-key");
  add("x-api-key", "api-key");
  add("traceparent", "traceparent");
  return metadata;
}

// What the log calls the request beside its id: the caller's header, else what the body says, else
// the id that this answer's head had if pings made it leave before gRPC named the request.
std::string Session::Label(const std::string& of_body) const {
  for (const char* name : {"x-client-request-id", "x-request-id"}) {
    const absl::string_view label = ToView(parser_->get()[name]);
    if (!label.empty() && label.size() <= limits::kClientRequestIdBytesMax &&
        IsPlainHeaderValue(label)) {
      return std::string(label);
    }
  }
  return of_body.empty() ? request_id_ : of_body;
}

// ---- Its answer ----

Session::Awaitable<void> Session::HandleRequest() {
  target_ = ParseTarget(ToView(parser_->get().target()));
  keep_alive_ = parser_->keep_alive();
  if (const std::optional<HttpError> wrong = CheckHead()) {
    keep_alive_ = keep_alive_ && parser_->content_length().value_or(0) == 0 && !parser_->chunked();
    co_await WriteError(*wrong);
    co_return;
  }
  const bool is_asked = parser_->get().count(http::field::expect) > 0;
  if (is_asked && parser_->get().version() >= 11 && input_.empty()) {
    const bool sent = co_await Write("HTTP/1.1 100 Continue\r\n\r\n");
    if (!sent) co_return;
  }
  const bool has_body = co_await ReadBody();
  if (!has_body) co_return;

  switch (target_.route) {
    case Route::kChatCompletions:
    case Route::kCompletions:
    case Route::kResponses:
    case Route::kMessages: {
      auto translated = TakeCall();
      if (translated.ok()) {
        co_await AnswerStreamCall(*std::move(translated));
      } else {
        co_await WriteStatus(translated.status(), {});
      }
      co_return;
    }
    case Route::kCountTokens:
      co_await AnswerCountTokens();
      co_return;
    case Route::kModels:
    case Route::kModel:
      co_await AnswerModels();
      co_return;
    case Route::kUsage:
      co_await AnswerUsage();
      co_return;
    case Route::kHealth:
      co_await WriteAnswer(200, "text/plain", "ok\n");
      co_return;
    case Route::kReady: {
      const bool is_ready = shared_->is_ready && !shared_->is_draining;
      co_await WriteAnswer(is_ready ? 200 : 503, "text/plain", is_ready ? "ok\n" : "not ready\n");
      co_return;
    }
    case Route::kNone:  // CheckHead has answered
      break;
  }
}

// The body is gone afterwards: an answer may take long.
std::string Session::TakeBody() {
  shared_->body_bytes -= std::exchange(body_bytes_, 0);
  return std::move(parser_->get().body());
}

absl::StatusOr<TranslatedCall> Session::TakeCall() {
  const std::string body = TakeBody();
  if (target_.route == Route::kMessages) return ParseMessages(body);
  const ReplyContext context = {.created_unix_s = absl::ToUnixSeconds(absl::Now()),
                                .find_model = shared_->options.find_model};
  if (target_.route == Route::kCompletions) return ParseCompletion(body, context);
  return target_.route == Route::kResponses ? ParseResponse(body, context)
                                            : ParseChatCompletion(body, context);
}

Session::Awaitable<void> Session::AnswerStreamCall(TranslatedCall translated) {
  translated.options()->set_client_request_id(Label(translated.options()->client_request_id()));
  call_ = StreamCall::Start(shared_->stub, &shared_->queue, &shared_->calls, translated.request,
                            CallersMetadata(), NotifyOnStrand());
  translated.request = v1::ChatRequest();  // gRPC has it
  const std::function<bool()> has_news = [this] { return is_gone() || call_->HasNews(); };
  for (bool is_first = true, is_last = false; !is_last;) {
    const bool in_time = co_await Until(has_news, shared_->options.ping_interval);
    if (is_gone()) {
      call_->Cancel();  // who left before there was a call could not
      co_return;
    }
    if (!in_time) {
      if (translated.stream) co_await WriteEvents(translated.reply->Ping(), "");
      continue;
    }
    if (std::exchange(is_first, false)) TakeMetadata(call_->metadata());
    std::optional<v1::GenerateChunk> chunk = call_->TakeChunk();
    if (!chunk) {
      absl::Status status = *call_->status();
      if (status.ok()) status = absl::InternalError("the stream ended without a last chunk");
      co_await WriteStatus(status, translated.names);
      co_return;
    }
    is_last = chunk->finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
    // No shape has an end for this one: what there is of the text, then an error.
    const bool is_ended = chunk->finish_reason() == v1::FINISH_REASON_CANCELLED;
    if (is_ended) chunk->clear_finish_reason();
    if (translated.stream) {
      const std::string events = translated.reply->Events(*chunk);
      if (!events.empty()) co_await WriteEvents(events, is_last && !is_ended ? kLastChunk : "");
    } else {
      translated.reply->Collect(*chunk);
      if (is_last && !is_ended) {
        co_await WriteAnswer(200, "application/json", translated.reply->Body());
      }
    }
    if (is_ended) {
      co_await WriteStatus(absl::UnavailableError("the operator ended this request"),
                           translated.names);
    }
    call_->ReadNext();  // after the last chunk: the status, which ends the call
  }
}

template <typename Call>
Session::Awaitable<bool> Session::Finished(std::shared_ptr<Call> call) {
  co_await Until([this, &call] { return is_gone() || call->status().has_value(); },
                 absl::InfiniteDuration());
  if (call->status()) {
    TakeMetadata(call->metadata());
    co_return true;
  }
  call->Cancel();
  co_return false;
}

Session::Awaitable<void> Session::AnswerCountTokens() {
  using Call = UnaryCall<v1::ChatRequest, v1::TokenizeResponse>;
  auto translated = ParseCountTokens(TakeBody());
  if (!translated.ok()) {
    co_await WriteStatus(translated.status(), {});
    co_return;
  }
  const auto call =
      Call::Start(shared_->stub, &v1::Inference::Stub::async::TokenizeChat, &shared_->calls,
                  std::get<v1::ChatRequest>(std::move(translated->request)), CallersMetadata(),
                  NotifyOnStrand());
  const bool finished = co_await Finished(call);
  if (!finished) co_return;
  if (call->status()->ok()) {
    co_await WriteAnswer(
        200, "application/json",
        absl::StrCat("{\"input_tokens\":", call->response().token_ids_size(), "}"));
  } else {
    co_await WriteStatus(*call->status(), translated->names);
  }
}

Session::Awaitable<void> Session::AnswerModels() {
  using Call = UnaryCall<v1::ListModelsRequest, v1::ListModelsResponse>;
  const auto call = Call::Start(shared_->stub, &v1::Inference::Stub::async::ListModels,
                                &shared_->calls, {}, CallersMetadata(), NotifyOnStrand());
  const bool finished = co_await Finished(call);
  if (!finished) co_return;
  if (!call->status()->ok()) {
    co_await WriteStatus(*call->status(), {});
    co_return;
  }
  auto body = target_.route == Route::kModels
                  ? ModelListBody(call->response(), shared_->started_unix_s)
                  : ModelBody(call->response(), target_.model, shared_->started_unix_s);
  if (body.ok()) {
    co_await WriteAnswer(200, "application/json", *std::move(body));
  } else {
    co_await WriteStatus(body.status(), {});
  }
}

Session::Awaitable<void> Session::AnswerUsage() {
  using Call = UnaryCall<v1::GetUsageRequest, v1::GetUsageResponse>;
  const absl::StatusOr<v1::GetUsageRequest> request = ParseUsageQuery(target_.query);
  if (!request.ok()) {
    co_await WriteStatus(request.status(), {});
    co_return;
  }
  const auto call = Call::Start(shared_->stub, &v1::Inference::Stub::async::GetUsage,
                                &shared_->calls, *request, CallersMetadata(), NotifyOnStrand());
  const bool finished = co_await Finished(call);
  if (!finished) co_return;
  if (call->status()->ok()) {
    co_await WriteAnswer(200, "application/json", UsageBody(call->response(), *request));
  } else {
    co_await WriteStatus(*call->status(), {});
  }
}

}  // namespace ultraspeed::router
