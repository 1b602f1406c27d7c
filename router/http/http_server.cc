#include "router/http/http_server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/support/channel_arguments.h"
#include "router/http/session.h"

namespace ultraspeed::router {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr std::chrono::milliseconds kAcceptPause(100);  // after an error such as too many files
constexpr absl::Duration kAbortPause = absl::Milliseconds(100);
constexpr absl::Duration kLastWords = absl::Seconds(1);  // to calls that a drain's deadline cut

// No port: only CallsChannel leads there.
std::unique_ptr<grpc::Server> StartCalls(grpc::Service* service) {
  grpc::ServerBuilder builder;
  builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(limits::kGrpcMessageBytesMax);
  return builder.BuildAndStart();
}

std::shared_ptr<grpc::Channel> CallsChannel(grpc::Server* server) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(limits::kGrpcMessageBytesMax);
  return server->InProcessChannel(arguments);
}

absl::StatusOr<tcp::endpoint> ParseListen(asio::io_context& io, absl::string_view listen) {
  const size_t colon = std::min(listen.rfind(':'), listen.size());
  absl::string_view host = listen.substr(0, colon);
  int port = -1;
  if (colon == listen.size() || !absl::SimpleAtoi(listen.substr(colon + 1), &port) || port < 0 ||
      port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("http-listen=", listen, ": must be host:port with a port of 0..65535"));
  }
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  error_code error;
  tcp::resolver resolver(io);
  const auto found =
      resolver.resolve(std::string(host), absl::StrCat(port), tcp::resolver::passive, error);
  if (error || found.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("http-listen=", listen, ": ", error.message()));
  }
  return found.begin()->endpoint();
}

absl::Status SetUpTls(const ServerPems& pems, std::optional<asio::ssl::context>* tls) {
  if (pems.cert.empty()) return absl::OkStatus();
  tls->emplace(asio::ssl::context::tls_server);
  asio::ssl::context& context = **tls;
  error_code error;
  context.set_options(asio::ssl::context::default_workarounds | asio::ssl::context::no_tlsv1 |
                          asio::ssl::context::no_tlsv1_1,
                      error);
  if (!error) context.use_certificate_chain(asio::buffer(pems.cert), error);
  if (!error) context.use_private_key(asio::buffer(pems.key), asio::ssl::context::pem, error);
  if (!error && !pems.ca.empty()) {
    context.add_certificate_authority(asio::buffer(pems.ca), error);
    context.set_verify_mode(asio::ssl::verify_peer | asio::ssl::verify_fail_if_no_peer_cert);
    // Without a name of its own a server that asks for certificates cannot resume sessions.
    constexpr unsigned char kName[] = "ultraspeed";
    SSL_CTX_set_session_id_context(context.native_handle(), kName, sizeof(kName));
  }
  if (!error) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("TLS files of http-listen: ", error.message()));
}

// A client whose machine vanished holds no slot for long, like one of gRPC's. The kernel's timeout
// comes behind the session's own of a write, which is counted. Errors are no harm.
void SetSocketOptions(tcp::socket& socket, absl::Duration write_timeout) {
  error_code ignored;
  socket.set_option(tcp::no_delay(true), ignored);
  socket.set_option(tcp::socket::keep_alive(true), ignored);
  socket.set_option(tcp::socket::send_buffer_size(limits::kHttpSendBufferBytes), ignored);
  const auto set = [&](int name, int value) {
    setsockopt(socket.native_handle(), IPPROTO_TCP, name, &value, sizeof(value));
  };
  set(TCP_KEEPIDLE, 30);
  set(TCP_KEEPINTVL, 5);
  set(TCP_KEEPCNT, 2);
  set(TCP_USER_TIMEOUT,
      static_cast<int>(absl::ToInt64Milliseconds(write_timeout + absl::Seconds(1))));
}

}  // namespace

class HttpServer::Listener {
 public:
  explicit Listener(Options options)
      : calls_(StartCalls(options.service)),
        stub_(v1::Inference::NewStub(CallsChannel(calls_.get()))),
        shared_(std::move(options), stub_.get()),
        acceptor_(asio::make_strand(io_)),
        guard_(io_.get_executor()) {}

  ~Listener() {
    StopAccepting();
    do {  // one may have been accepted meanwhile
      Session::AbortAll(&shared_);
    } while (!shared_.sessions.AwaitNone(kAbortPause));
    shared_.calls.AwaitNone(absl::InfiniteDuration());
    guard_.reset();
    for (std::thread& thread : threads_) thread.join();
  }

  absl::Status Start() {
    const std::string& listen = shared_.options.listen;
    ASSIGN_OR_RETURN(const tcp::endpoint endpoint, ParseListen(io_, listen));
    ASSIGN_OR_RETURN(const ServerPems pems, ReadServerPems(shared_.options.tls, listen));
    RETURN_IF_ERROR(SetUpTls(pems, &shared_.tls));
    error_code error;
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(tcp::acceptor::max_listen_connections, error);
    if (!error) port_ = acceptor_.local_endpoint(error).port();
    if (error) {
      return absl::UnavailableError(
          absl::StrCat("http-listen=", listen, ": cannot bind: ", error.message()));
    }
    asio::co_spawn(
        acceptor_.get_executor(), [this] { return Accept(); },
        [](const std::exception_ptr& exception) {
          if (exception != nullptr) std::rethrow_exception(exception);
        });
    for (int i = 0; i < limits::kHttpThreads; ++i) threads_.emplace_back([this] { io_.run(); });
    return absl::OkStatus();
  }

  void StopAccepting() {
    shared_.is_draining = true;
    asio::post(acceptor_.get_executor(), [this] {
      error_code ignored;
      acceptor_.close(ignored);
    });
    Session::DrainAll(&shared_);
  }

  void Drain(absl::Time deadline) {
    if (shared_.sessions.AwaitNone(deadline - absl::Now())) return;
    calls_->Shutdown(absl::ToChronoTime(absl::Now()));
    shared_.sessions.AwaitNone(kLastWords);
  }

  int port() const { return port_; }
  SessionShared& shared() { return shared_; }

 private:
  asio::awaitable<void> Accept() {
    while (!shared_.is_draining) {
      tcp::socket socket(asio::make_strand(io_));
      error_code error;
      co_await acceptor_.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
      if (shared_.is_draining) co_return;
      if (error) {
        Log(LogLevel::kWarning, "router.http_accept", {{"message", error.message()}});
        asio::steady_timer pause(acceptor_.get_executor(), kAcceptPause);
        co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
        continue;
      }
      if (NumOpen() >= shared_.options.connections_max) {
        shared_.metrics.ConnectionRefused();
        continue;
      }
      SetSocketOptions(socket, shared_.options.write_timeout);
      Session::Start(std::move(socket), &shared_);
    }
  }

  int NumOpen() {
    absl::MutexLock lock(&shared_.mutex);
    return static_cast<int>(shared_.open.size());
  }

  const std::unique_ptr<grpc::Server> calls_;
  asio::io_context io_;  // after every connection
  const std::unique_ptr<v1::Inference::Stub> stub_;
  SessionShared shared_;
  tcp::acceptor acceptor_;
  asio::executor_work_guard<asio::io_context::executor_type> guard_;
  std::vector<std::thread> threads_;
  int port_ = 0;
};

HttpServer::HttpServer(std::unique_ptr<Listener> listener) : listener_(std::move(listener)) {}
HttpServer::~HttpServer() = default;

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(Options options) {
  auto listener = std::make_unique<Listener>(std::move(options));
  RETURN_IF_ERROR(listener->Start());
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(listener)));
}

int HttpServer::port() const { return listener_->port(); }
void HttpServer::SetReady(bool ready) { listener_->shared().is_ready = ready; }
void HttpServer::Drain(absl::Time deadline) { listener_->Drain(deadline); }
void HttpServer::StopAccepting() { listener_->StopAccepting(); }
bool HttpServer::AwaitIdle(absl::Duration timeout) {
  return listener_->shared().sessions.AwaitNone(timeout);
}

}  // namespace ultraspeed::router
