#include "router/http/session.h"

#include <algorithm>
#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/verb.hpp>
#include <exception>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/uuid.h"

namespace ultraspeed::router {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr size_t kReadBytes = 8u << 10;

HttpError ErrorOfParser(const error_code& error) {
  if (error == http::error::header_limit) {
    return {.kind = ErrorKind::kHeaderTooLarge,
            .message = absl::StrCat("header is larger than ", limits::kHttpHeaderBytesMax,
                                    " bytes, the most there may be")};
  }
  if (error == http::error::body_limit) {
    return {.kind = ErrorKind::kBodyTooLarge,
            .message = absl::StrCat("body is larger than ", limits::kHttpBodyBytesMax,
                                    " bytes, the most there may be")};
  }
  return {.kind = ErrorKind::kInvalidRequest,
          .message = absl::StrCat("the request is not well-formed HTTP/1.1: ", error.message())};
}

}  // namespace

// ---- Life ----

Session::Session(asio::ip::tcp::socket socket, SessionShared* shared)
    : token_(&shared->sessions),
      shared_(shared),
      socket_(std::move(socket)),
      wakeup_(socket_.get_executor()),
      input_space_(socket_.get_executor()),
      deadline_(socket_.get_executor()) {
  shared_->metrics.ConnectionOpened();
  absl::MutexLock lock(&shared_->mutex);
  shared_->open.insert(this);
}

Session::~Session() {
  shared_->metrics.ConnectionClosed();
  absl::MutexLock lock(&shared_->mutex);
  shared_->open.erase(this);
}

void Session::Start(asio::ip::tcp::socket socket, SessionShared* shared) {
  const auto executor = socket.get_executor();
  std::shared_ptr<Session> session(new Session(std::move(socket), shared));
  asio::co_spawn(
      executor, [session] { return session->Run(); },
      [session](const std::exception_ptr& exception) {
        if (exception != nullptr) std::rethrow_exception(exception);
      });
}

namespace {

std::vector<std::shared_ptr<Session>> OpenSessions(SessionShared* shared) {
  std::vector<std::shared_ptr<Session>> sessions;
  absl::MutexLock lock(&shared->mutex);
  for (Session* session : shared->open) {
    if (auto alive = session->weak_from_this().lock()) sessions.push_back(std::move(alive));
  }
  return sessions;
}

}  // namespace

void Session::DrainAll(SessionShared* shared) {
  for (const auto& session : OpenSessions(shared)) {
    asio::post(session->socket_.get_executor(), [session] { session->Notify(); });
  }
}

void Session::AbortAll(SessionShared* shared) {
  for (const auto& session : OpenSessions(shared)) {
    asio::post(session->socket_.get_executor(), [session] { session->Cut(); });
  }
}

OnNews Session::NotifyOnStrand() {
  return [self = shared_from_this()] {
    asio::post(self->socket_.get_executor(), [self] { self->Notify(); });
  };
}

void Session::Notify() { wakeup_.cancel(); }

void Session::OnPeerGone() {
  peer_gone_ = true;
  if (call_ != nullptr) call_->Cancel();
  Notify();
}

void Session::Cut() {
  is_cut_ = true;
  error_code ignored;
  socket_.close(ignored);
  input_space_.cancel();
  if (call_ != nullptr) call_->Cancel();
  Notify();
}

Session::Awaitable<bool> Session::Until(std::function<bool()> predicate, absl::Duration timeout) {
  const Clock::time_point end = timeout == absl::InfiniteDuration()
                                    ? Clock::time_point::max()
                                    : Clock::now() + absl::ToChronoNanoseconds(timeout);
  while (!predicate()) {
    if (Clock::now() >= end) co_return false;
    wakeup_.expires_at(end);
    error_code woken;
    co_await wakeup_.async_wait(asio::redirect_error(asio::use_awaitable, woken));
  }
  co_return true;
}

Session::Awaitable<void> Session::Run() {
  const bool may_begin = co_await Handshake();
  if (may_begin) {
    asio::co_spawn(
        socket_.get_executor(), [self = shared_from_this()] { return self->ReadInput(); },
        [self = shared_from_this()](const std::exception_ptr& exception) {
          if (exception != nullptr) std::rethrow_exception(exception);
        });
    for (bool is_open = true; is_open;) {
      const bool has_head = co_await ReadHead();
      if (has_head) {
        co_await HandleRequest();
        shared_->metrics.RequestEnded(target_.route, status_ == 0 ? 499 : status_);
      }
      shared_->body_bytes -= std::exchange(body_bytes_, 0);
      call_.reset();
      is_open = has_head && keep_alive_ && !is_gone() && !shared_->is_draining;
    }
    if (status_ != 0) co_await CloseGently();  // an answer is on its way
  }
  Cut();
}

Session::Awaitable<bool> Session::Handshake() {
  if (!shared_->tls) co_return true;
  tls_.emplace(socket_, *shared_->tls);
  StartDeadline(shared_->options.header_timeout);
  error_code error;
  co_await tls_->async_handshake(asio::ssl::stream_base::server,
                                 asio::redirect_error(asio::use_awaitable, error));
  EndDeadline();
  co_return !error && !is_cut_;
}

// The client is told that nothing more comes and gets time to read what came: closing with input
// unread would make its kernel drop the answer (RFC 9112, 9.6).
Session::Awaitable<void> Session::CloseGently() {
  if (is_gone()) co_return;
  error_code ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  discards_input_ = true;
  input_space_.cancel();
  co_await Until([this] { return is_gone(); }, absl::Seconds(limits::kHttpLingerS));
}

// ---- Reading ----

// Stops while a client sends ahead more than there is room for; that one's leaving is noticed only
// when its answer cannot be written.
Session::Awaitable<void> Session::ReadInput() {
  std::array<char, kReadBytes> block;
  while (!is_gone()) {
    error_code error;
    while (input_.size() >= limits::kHttpInputBytesMax && !discards_input_ && !is_cut_) {
      input_space_.expires_at(Clock::time_point::max());
      co_await input_space_.async_wait(asio::redirect_error(asio::use_awaitable, error));
    }
    size_t num_bytes = 0;
    if (tls_) {
      num_bytes = co_await tls_->async_read_some(asio::buffer(block),
                                                 asio::redirect_error(asio::use_awaitable, error));
    } else {
      num_bytes = co_await socket_.async_read_some(
          asio::buffer(block), asio::redirect_error(asio::use_awaitable, error));
    }
    if (error) {
      OnPeerGone();
      co_return;
    }
    if (discards_input_) continue;
    input_.append(block.data(), num_bytes);
    has_fresh_input_ = true;
    Notify();
  }
}

Session::Awaitable<bool> Session::ReadHead() {
  const bool is_first = !parser_.has_value();
  parser_.emplace();
  parser_->header_limit(static_cast<uint32_t>(limits::kHttpHeaderBytesMax));
  parser_->body_limit(limits::kHttpBodyBytesMax);
  target_ = Target();
  request_id_ = NewUuidV7();
  headers_ = {{"x-request-id", request_id_}};
  keep_alive_ = has_begun_ = false;
  status_ = 0;
  const auto& options = shared_->options;
  const bool has_bytes = co_await Until(
      [this] {
        // Empty lines before a request are passed over (RFC 9112, 2.2).
        input_.erase(0, std::min(input_.find_first_not_of("\r\n"), input_.size()));
        return is_gone() || !input_.empty() || shared_->is_draining;
      },
      is_first ? options.header_timeout : options.idle_timeout);
  if (!has_bytes || is_gone() || input_.empty()) co_return false;
  co_return co_await Parse([this] { return parser_->is_header_done(); }, options.header_timeout);
}

Session::Awaitable<bool> Session::ReadBody() {
  parser_->eager(true);
  co_return co_await Parse([this] { return parser_->is_done(); }, shared_->options.body_timeout);
}

Session::Awaitable<bool> Session::Parse(std::function<bool()> is_enough, absl::Duration timeout) {
  const absl::Time end = absl::Now() + timeout;
  std::optional<HttpError> wrong;
  while (!is_enough()) {
    error_code error;
    has_fresh_input_ = false;
    const size_t num_parsed = parser_->put(asio::buffer(input_), error);
    input_.erase(0, num_parsed);
    input_space_.cancel();
    if (parser_->is_header_done()) {
      const auto held_bytes = static_cast<int64_t>(parser_->get().body().size());
      shared_->body_bytes += held_bytes - std::exchange(body_bytes_, held_bytes);
    }
    if (error && error != http::error::need_more) {
      wrong = ErrorOfParser(error);
    } else if (shared_->body_bytes > static_cast<int64_t>(limits::kHttpBodiesBytesMax)) {
      wrong = HttpError{.kind = ErrorKind::kOverloaded,
                        .message = absl::StrCat("requests of ", limits::kHttpBodiesBytesMax,
                                                " bytes are being read already")};
    } else if (!is_enough() && (error || num_parsed == 0)) {
      const bool woken =
          co_await Until([this] { return is_gone() || has_fresh_input_; }, end - absl::Now());
      if (is_gone()) co_return false;
      if (!woken) {
        wrong = HttpError{.kind = ErrorKind::kRequestTimeout,
                          .message = absl::StrCat("the request did not come within ",
                                                  absl::FormatDuration(timeout))};
      }
    }
    if (wrong) {
      keep_alive_ = false;
      if (!parser_->get().target().empty()) target_ = ParseTarget(ToView(parser_->get().target()));
      co_await WriteError(*wrong);
      if (!parser_->is_header_done()) shared_->metrics.RequestEnded(target_.route, status_);
      co_return false;
    }
  }
  co_return true;
}

// ---- Writing ----

// What gRPC calls the request is its name from now on.
void Session::TakeMetadata(HttpHeaders metadata) {
  if (const std::string id = ValueOf(metadata, "x-request-id"); !id.empty()) {
    request_id_ = id;
  } else {
    metadata.emplace_back("x-request-id", request_id_);
  }
  headers_ = std::move(metadata);
}

ResponseHead Session::Head(int status, absl::string_view content_type) const {
  ResponseHead head = {.status = status, .content_type = content_type, .headers = headers_};
  head.keep_alive = keep_alive_ && !shared_->is_draining;
  head.headers.emplace_back(
      "date", absl::FormatTime("%a, %d %b %Y %H:%M:%S GMT", absl::Now(), absl::UTCTimeZone()));
  if (DialectOf(target_.route) == Dialect::kAnthropic) {
    AddAnthropicHeaders(absl::Now(), &head.headers);
  }
  return head;
}

Session::Awaitable<void> Session::WriteEvents(absl::string_view events, absl::string_view end) {
  const bool is_chunked = parser_->get().version() >= 11;
  std::string bytes;
  if (!has_begun_) {
    has_begun_ = true;
    status_ = 200;
    if (!is_chunked) keep_alive_ = false;
    ResponseHead head = Head(200, "text/event-stream; charset=utf-8");
    head.framing = is_chunked ? BodyFraming::kChunked : BodyFraming::kUntilClose;
    head.headers.emplace_back("cache-control", "no-cache");
    head.headers.emplace_back("x-accel-buffering", "no");  // nginx passes events on at once
    bytes = head.ToString();
  }
  if (is_chunked) {
    absl::StrAppend(&bytes, Chunk(events), end);
  } else {
    absl::StrAppend(&bytes, events);
  }
  co_await Write(std::move(bytes));
}

Session::Awaitable<void> Session::WriteAnswer(int status, absl::string_view content_type,
                                              std::string body) {
  status_ = status;
  ResponseHead head = Head(status, content_type);
  head.body_bytes = body.size();
  std::string bytes = head.ToString();
  if (parser_->get().method() != http::verb::head) absl::StrAppend(&bytes, body);
  co_await Write(std::move(bytes));
}

Session::Awaitable<void> Session::WriteStatus(const absl::Status& status, const FieldNames& names) {
  const bool admitted = !ValueOf(headers_, "x-service-tier").empty();
  const HttpError error = ErrorOfStatus(status, admitted, names, request_id_);
  co_await WriteError(error);
}

Session::Awaitable<void> Session::WriteError(const HttpError& error) {
  const Dialect dialect = DialectOf(target_.route);
  if (has_begun_) {
    co_await WriteEvents(ErrorEvent(error, dialect, request_id_), kLastChunk);
    co_return;
  }
  const int status = HttpStatusOf(error.kind, dialect);
  if (status == 401) headers_.emplace_back("www-authenticate", "Bearer");
  const bool may_retry =
      error.kind == ErrorKind::kOverloaded || error.kind == ErrorKind::kUnavailable;
  if (may_retry && ValueOf(headers_, "retry-after").empty()) {
    headers_.emplace_back("retry-after", "1");
  }
  co_await WriteAnswer(status, "application/json", ErrorBody(error, dialect, request_id_));
}

void Session::StartDeadline(absl::Duration timeout) {
  deadline_.expires_after(absl::ToChronoNanoseconds(timeout));
  // A deadline that passed while its write ended is one of an older number.
  deadline_.async_wait(
      [self = shared_from_this(), number = ++deadline_number_](const error_code& error) {
        if (error || number != self->deadline_number_) return;
        self->shared_->metrics.WriteTimedOut();
        self->Cut();
      });
}

void Session::EndDeadline() {
  ++deadline_number_;
  deadline_.cancel();
}

Session::Awaitable<bool> Session::Write(std::string bytes) {
  for (size_t num_sent = 0; num_sent < bytes.size() && !is_cut_;) {
    const size_t num_bytes = std::min(bytes.size() - num_sent, limits::kHttpWriteBytesMax);
    const auto slice = asio::buffer(bytes.data() + num_sent, num_bytes);
    StartDeadline(shared_->options.write_timeout);
    error_code error;
    if (tls_) {
      co_await asio::async_write(*tls_, slice, asio::redirect_error(asio::use_awaitable, error));
    } else {
      co_await asio::async_write(socket_, slice, asio::redirect_error(asio::use_awaitable, error));
    }
    EndDeadline();
    if (error) Cut();
    num_sent += num_bytes;
  }
  co_return !is_cut_;
}

}  // namespace ultraspeed::router
