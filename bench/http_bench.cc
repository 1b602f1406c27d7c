#include "bench/http_bench.h"

#include <arpa/inet.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <iomanip>
#include <memory>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/open_loop.h"
#include "common/grpc_status.h"
#include "common/status_macros.h"
#include "common/tls.h"
#include "ultraspeed/v1/inference.grpc.pb.h"

namespace ultraspeed::bench {
namespace {

constexpr uint64_t kSeed = 20261128;
constexpr int kTimeoutS = 60;

// Of one request.
struct Times {
  double first_text_ms = 0;
  double all_ms = 0;
};

double MsSince(absl::Time start) { return absl::ToDoubleMilliseconds(absl::Now() - start); }

absl::StatusOr<Times> AskGrpc(const HttpBenchOptions& options, v1::Inference::Stub& stub) {
  v1::GenerateRequest request;
  request.set_model(options.model);
  request.set_prompt(options.prompt);
  request.mutable_options()->set_max_tokens(options.max_tokens);
  request.mutable_options()->set_ignore_eos(true);
  request.mutable_options()->mutable_sampling()->set_seed(kSeed);
  grpc::ClientContext context;
  context.AddMetadata("authorization", absl::StrCat("Bearer ", options.api_key));
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(kTimeoutS));
  Times times;
  const absl::Time start = absl::Now();
  const auto reader = stub.Generate(&context, request);
  v1::GenerateChunk chunk;
  while (reader->Read(&chunk)) {
    if (times.first_text_ms == 0 && !chunk.text().empty()) times.first_text_ms = MsSince(start);
  }
  RETURN_IF_ERROR(FromGrpcStatus(reader->Finish()));
  times.all_ms = MsSince(start);
  return times;
}

// A kept connection.
class HttpCaller {
 public:
  static absl::StatusOr<std::unique_ptr<HttpCaller>> Connect(const std::string& target) {
    const size_t colon = std::min(target.rfind(':'), target.size());
    sockaddr_in address{};
    int port = 0;
    address.sin_family = AF_INET;
    if (!IsLoopback(target) || colon == target.size() ||
        inet_pton(AF_INET, target.substr(0, colon).c_str(), &address.sin_addr) != 1 ||
        !absl::SimpleAtoi(target.substr(colon + 1), &port) || port < 1 || port > 65535) {
      return absl::InvalidArgumentError(
          absl::StrCat("--http_target=", target, ": must be 127.x.x.x:port"));
    }
    address.sin_port = htons(static_cast<uint16_t>(port));
    std::unique_ptr<HttpCaller> caller(new HttpCaller(socket(AF_INET, SOCK_STREAM, 0)));
    const int yes = 1;
    setsockopt(caller->fd_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    const timeval timeout = {.tv_sec = kTimeoutS, .tv_usec = 0};
    setsockopt(caller->fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    if (connect(caller->fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
      return absl::UnavailableError(absl::StrCat("--http_target=", target, ": cannot connect"));
    }
    return caller;
  }
  ~HttpCaller() { close(fd_); }

  absl::StatusOr<Times> Ask(const HttpBenchOptions& options) {
    const std::string body =
        boost::json::serialize(boost::json::object{{"model", options.model},
                                                   {"prompt", options.prompt},
                                                   {"max_tokens", options.max_tokens},
                                                   {"ignore_eos", true},
                                                   {"seed", kSeed},
                                                   {"stream", true}});
    const std::string request = absl::StrCat(
        "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n",
        "Authorization: Bearer ", options.api_key, "\r\nContent-Length: ", body.size(), "\r\n\r\n",
        body);
    Times times;
    std::string answer;
    const absl::Time start = absl::Now();
    if (send(fd_, request.data(), request.size(), MSG_NOSIGNAL) !=
        static_cast<ssize_t>(request.size())) {
      return absl::UnavailableError("the HTTP connection broke");
    }
    // The end of the stream is the last thing that a kept connection brings.
    while (answer.size() < kEnd.size() ||
           absl::string_view(answer).substr(answer.size() - kEnd.size()) != kEnd) {
      char block[16384];
      const ssize_t num_read = read(fd_, block, sizeof(block));
      if (num_read <= 0) {
        return absl::UnavailableError(absl::StrCat("no whole stream but: ", answer.substr(0, 300)));
      }
      answer.append(block, static_cast<size_t>(num_read));
      if (times.first_text_ms == 0 && answer.find("\"text\":") != std::string::npos) {
        times.first_text_ms = MsSince(start);
      }
    }
    times.all_ms = MsSince(start);
    return times;
  }

 private:
  static constexpr absl::string_view kEnd = "data: [DONE]\n\n\r\n0\r\n\r\n";

  explicit HttpCaller(int fd) : fd_(fd) {}

  const int fd_;
};

boost::json::object Summarize(const std::vector<Times>& all, int max_tokens) {
  std::vector<double> first, whole;
  for (const Times& times : all) {
    first.push_back(times.first_text_ms);
    whole.push_back(times.all_ms);
  }
  const Quantiles first_text = QuantilesOf(first), all_text = QuantilesOf(whole);
  return {{"first_text_ms", {{"p50", first_text.p50}, {"p90", first_text.p90}}},
          {"all_ms", {{"p50", all_text.p50}, {"p90", all_text.p90}}},
          {"tokens_per_second", max_tokens / all_text.p50 * 1000}};
}

}  // namespace

absl::StatusOr<boost::json::object> MeasureHttp(const HttpBenchOptions& options) {
  if (options.repeats < 1 || options.max_tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--repeats=", options.repeats, " --max_tokens=", options.max_tokens, ": both at least 1"));
  }
  ASSIGN_OR_RETURN(const auto credentials, CreateChannelCredentials({}, options.grpc_target));
  const auto stub = v1::Inference::NewStub(grpc::CreateChannel(options.grpc_target, credentials));
  ASSIGN_OR_RETURN(const auto http, HttpCaller::Connect(options.http_target));
  std::vector<Times> by_grpc, by_http;
  for (int i = 0; i <= options.repeats; ++i) {
    ASSIGN_OR_RETURN(const Times grpc_times, AskGrpc(options, *stub));
    ASSIGN_OR_RETURN(const Times http_times, http->Ask(options));
    if (i == 0) continue;  // warms both
    by_grpc.push_back(grpc_times);
    by_http.push_back(http_times);
  }
  return boost::json::object{{"grpc", Summarize(by_grpc, options.max_tokens)},
                             {"http", Summarize(by_http, options.max_tokens)},
                             {"max_tokens", options.max_tokens},
                             {"repeats", options.repeats}};
}

void PrintHttp(const boost::json::object& report, std::ostream& out) {
  out << "        first text, ms      all of it, ms     tokens/s\n"
      << "         p50       p90      p50       p90\n"
      << std::fixed << std::setprecision(2);
  for (const char* way : {"grpc", "http"}) {
    const boost::json::value& row = report.at(way);
    out << way;
    for (const char* field : {"first_text_ms", "all_ms"}) {
      for (const char* quantile : {"p50", "p90"}) {
        out << std::setw(10) << row.at(field).at(quantile).to_number<double>();
      }
    }
    out << std::setw(12) << row.at("tokens_per_second").to_number<double>() << "\n";
  }
}

}  // namespace ultraspeed::bench
