// One HTTP connection: reads requests, has them translated, makes the calls, writes the answers.
// Private to router/http: the only header with Asio and Beast in it. session.cc reads and writes,
// session_requests.cc knows what requests want.
//
// Two coroutines share the connection's strand: Run goes from request to answer to request;
// ReadInput reads ahead all the time, so that a client that leaves is noticed while its request
// waits in a queue. What happens elsewhere (input, a call's news, a timer) wakes Run, which looks
// at what it waits for. One write is in flight at most.
#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "router/http/http_metrics.h"
#include "router/http/http_server.h"
#include "router/http/inference_calls.h"
#include "router/http/response_head.h"
#include "router/http/routes.h"
#include "router/http/translation.h"

namespace ultraspeed::router {

inline absl::string_view ToView(boost::beast::string_view text) {
  return {text.data(), text.size()};
}

class Session;

// What all connections of a server share. Thread contract: any thread.
struct SessionShared {
  SessionShared(HttpServer::Options server_options, v1::Inference::Stub* inference)
      : options(std::move(server_options)), stub(inference), metrics(options.metrics) {}

  const HttpServer::Options options;
  v1::Inference::Stub* const stub;
  HttpMetrics metrics;
  std::optional<boost::asio::ssl::context> tls;  // set before the first connection
  std::atomic<bool> is_ready{false};
  std::atomic<bool> is_draining{false};
  std::atomic<int64_t> body_bytes{0};  // of requests that are being read
  const int64_t started_unix_s = absl::ToUnixSeconds(absl::Now());
  CallQueue queue;
  LiveCount sessions;
  LiveCount calls;

  absl::Mutex mutex;
  std::set<Session*> open ABSL_GUARDED_BY(mutex);
};

// Thread contract: Create, Drain and Abort from any thread; the rest on the strand of the socket.
class Session : public std::enable_shared_from_this<Session> {
 public:
  // REQUIRES: the socket's executor is a strand of its own.
  static void Start(boost::asio::ip::tcp::socket socket, SessionShared* shared);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  static void DrainAll(SessionShared* shared);
  static void AbortAll(SessionShared* shared);

 private:
  template <typename Result>
  using Awaitable = boost::asio::awaitable<Result>;
  using Clock = std::chrono::steady_clock;
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  using Message = Parser::value_type;

  Session(boost::asio::ip::tcp::socket socket, SessionShared* shared);

  Awaitable<void> Run();
  Awaitable<void> ReadInput();
  Awaitable<bool> Handshake();

  // Waits until `predicate` holds; false when `timeout` passed before.
  Awaitable<bool> Until(std::function<bool()> predicate, absl::Duration timeout);
  // Hands what was read to the parser until `is_enough`, or until something is wrong, which is then
  // answered. False: the connection is over.
  Awaitable<bool> Parse(std::function<bool()> is_enough, absl::Duration timeout);
  Awaitable<bool> ReadHead();
  Awaitable<bool> ReadBody();
  Awaitable<void> HandleRequest();
  // The first thing that is wrong with a head, whatever its body will be.
  std::optional<HttpError> CheckHead();
  HttpHeaders CallersMetadata() const;
  std::string Label(const std::string& of_body) const;

  std::string TakeBody();
  absl::StatusOr<TranslatedCall> TakeCall();
  Awaitable<void> AnswerStreamCall(TranslatedCall translated);
  Awaitable<void> AnswerCountTokens();
  Awaitable<void> AnswerModels();
  Awaitable<void> AnswerUsage();
  // Starts a unary call and waits for its end. False: the client left.
  template <typename Call>
  Awaitable<bool> Finished(std::shared_ptr<Call> call);

  Awaitable<void> WriteEvents(absl::string_view events, absl::string_view end);
  Awaitable<void> WriteAnswer(int status, absl::string_view content_type, std::string body);
  Awaitable<void> WriteStatus(const absl::Status& status, const FieldNames& names);
  Awaitable<void> WriteError(const HttpError& error);
  // False when the connection is gone.
  Awaitable<bool> Write(std::string bytes);
  Awaitable<void> CloseGently();
  // Cuts the connection unless EndDeadline comes within `timeout`.
  void StartDeadline(absl::Duration timeout);
  void EndDeadline();

  ResponseHead Head(int status, absl::string_view content_type) const;
  void TakeMetadata(HttpHeaders metadata);
  OnNews NotifyOnStrand();
  void Notify();
  void OnPeerGone();
  void Cut();
  bool is_gone() const { return peer_gone_ || is_cut_; }

  // First, so that they end last.
  const LiveCount::Token token_;
  SessionShared* const shared_;

  boost::asio::ip::tcp::socket socket_;
  std::optional<boost::asio::ssl::stream<boost::asio::ip::tcp::socket&>> tls_;
  boost::asio::steady_timer wakeup_;       // Run waits on it
  boost::asio::steady_timer input_space_;  // ReadInput waits on it
  boost::asio::steady_timer deadline_;     // of a write or a TLS handshake

  std::string input_;             // read, not parsed
  bool has_fresh_input_ = false;  // since the parser last said that it needs more
  bool discards_input_ = false;
  bool peer_gone_ = false;
  bool is_cut_ = false;
  uint64_t deadline_number_ = 0;

  // ---- Of the request under way ----
  std::optional<Parser> parser_;
  int64_t body_bytes_ = 0;  // counted in shared_->body_bytes
  Target target_;
  std::string request_id_;
  HttpHeaders headers_;  // of the answer
  bool keep_alive_ = false;
  bool has_begun_ = false;  // the answer's head has left
  int status_ = 0;          // of the answer; 0: none has begun
  std::shared_ptr<StreamCall> call_;
};

}  // namespace ultraspeed::router
