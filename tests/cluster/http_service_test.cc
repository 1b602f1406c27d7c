// The HTTP front in this process, with the router's service behind it and fake workers behind that:
// timings and faults that a real worker only shows on bad days.
#include <gmock/gmock.h>
#include <openssl/bio.h>
#include <openssl/ssl.h>

#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "router/http/http_server.h"
#include "tests/cluster/http_client.h"
#include "tests/cluster/router_service_fixture.h"
#include "tests/common/certificate.h"

namespace ultraspeed::router {
namespace {

using testing::Certificate;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::HttpConnection;
using testing::HttpGetRequest;
using testing::HttpPost;
using testing::HttpResponse;
using ::testing::Not;
using testing::ParseSse;
using testing::SseEvents;

constexpr char kText[] = "\"text\":";  // of the first event that has some

class HttpServiceTest : public RouterServiceTest {
 protected:
  void StartHttp(HttpServer::Options options = {}) {
    StartRouter();
    StartHttpServer(std::move(options));
  }
  void StartHttpServer(HttpServer::Options options) {
    if (options.listen.empty()) options.listen = "127.0.0.1:0";
    options.service = service_.get();
    options.find_model = [this](const std::string& name) {
      const auto model = pool_->FindModel(name);
      return model.ok() ? ModelDetails{.weights_sha256 = (*model)->weights_sha256,
                                       .tokenizer = (*model)->tokenizer}
                        : ModelDetails();
    };
    options.metrics = &metrics_;
    auto started = HttpServer::Start(std::move(options));
    ASSERT_TRUE(started.ok()) << started.status();
    http_ = *std::move(started);
    http_->SetReady(true);
  }

  void TearDown() override {
    http_.reset();
    RouterServiceTest::TearDown();
  }

  static std::string Completion(const std::string& more = "", bool stream = true) {
    return HttpPost("/v1/completions",
                    absl::StrCat(R"({"model":"fake","prompt":"say something","max_tokens":4000)",
                                 stream ? R"(,"stream":true)" : "", more, "}"),
                    "");
  }

  HttpResponse Ask(const std::string& request) {
    HttpConnection connection(http_->port());
    connection.Send(request);
    return connection.Receive();
  }

  std::unique_ptr<HttpServer> http_;
};

TEST_F(HttpServiceTest, EventsAreChunksAndTheEndIsTold) {
  AddWorker();
  StartHttp();
  const HttpResponse response = Ask(Completion());
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.header("content-type"), "text/event-stream; charset=utf-8");
  EXPECT_EQ(response.header("cache-control"), "no-cache");
  EXPECT_EQ(response.header("x-accel-buffering"), "no");
  EXPECT_TRUE(response.is_complete);
  const SseEvents events = ParseSse(response.body);
  EXPECT_EQ(events.Joined("text"), "hello world");
  EXPECT_TRUE(events.is_whole);
  ASSERT_FALSE(events.data.empty());
  EXPECT_EQ(events.data.back(), "[DONE]");
}

TEST_F(HttpServiceTest, SilenceIsFilledWithPingsFromTheFirstTokenOnAndBefore) {
  const std::vector<int32_t> ids = Encode("hello world");
  AddWorker({.script = PlaySteps({{absl::Milliseconds(130), {ids[0]}},
                                  {absl::Milliseconds(130), {ids.begin() + 1, ids.end()}}})});
  StartHttp({.ping_interval = absl::Milliseconds(50)});
  const HttpResponse response = Ask(Completion());
  EXPECT_EQ(response.status, 200);
  EXPECT_TRUE(absl::StartsWith(response.body, ": ping\n\n")) << response.body;
  EXPECT_THAT(response.body, HasSubstr("}\n\n: ping\n\n"));
  EXPECT_EQ(ParseSse(response.body).Joined("text"), "hello world");
  // An answer in one piece waits without a word.
  const HttpResponse whole = Ask(Completion("", false));
  EXPECT_EQ(whole.status, 200);
  EXPECT_EQ(whole.json().at("choices").at(0).at("text"), "hello world");
}

TEST_F(HttpServiceTest, AFailureBeforeTheFirstTokenIsAStatusAndOneAfterItAnEvent) {
  FakeWorker& worker = AddWorker();
  worker.SetScript(PlayStepsThenFail({}, grpc::Status(grpc::StatusCode::UNAVAILABLE, "away")));
  StartHttp();
  const HttpResponse refused = Ask(Completion());
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.header("retry-after"), "1");
  EXPECT_EQ(refused.json().at("error").as_object().size(), 4u);
  EXPECT_THAT(refused.header("x-request-id"), Not(""));
  const HttpResponse anthropic = Ask(HttpPost(
      "/v1/messages",
      R"({"model":"fake","max_tokens":5,"messages":[{"role":"user","content":"a"}]})", ""));
  EXPECT_EQ(anthropic.status, 529);
  EXPECT_EQ(anthropic.json().at("error").at("type"), "overloaded_error");

  worker.SetScript(
      PlayStepsThenFail(StepsOf("hello"), grpc::Status(grpc::StatusCode::UNAVAILABLE, "away")));
  const HttpResponse broken = Ask(Completion());
  EXPECT_EQ(broken.status, 200);
  EXPECT_TRUE(broken.is_complete);
  const SseEvents events = ParseSse(broken.body);
  EXPECT_EQ(events.Joined("text"), "hello");
  EXPECT_THAT(events.data.back(), HasSubstr("{\"error\":{\"message\":\"worker lost after"));
  EXPECT_THAT(events.data, Not(::testing::Contains("[DONE]")));
}

// In the channel within the process a message waits for its reader; none may be lost, whenever the
// reader comes, and the last one comes together with the status.
TEST_F(HttpServiceTest, AnAnswerThatTheOperatorEndsIsAnError) {
  AddWorker({.script = PlaySteps(StepsOf("hello"), v1::FINISH_REASON_CANCELLED)});
  StartHttp();
  EXPECT_EQ(Ask(Completion("", false)).status, 503);
  const SseEvents events = ParseSse(Ask(Completion()).body);
  EXPECT_EQ(events.Joined("text"), "hello");
  EXPECT_THAT(events.data.back(), HasSubstr("the operator ended this request"));
  http_.reset();  // waits for calls that never ended
}

TEST_F(HttpServiceTest, CallsOfToolsInEveryShape) {
  AddWorker({.script = PlaySteps(
                 StepsOf("<tool_call>\n<function=f>\n<parameter=x>é</parameter>\n</function>\n"
                         "</tool_call>"),
                 v1::FINISH_REASON_STOP)});
  StartHttp();
  const std::string ask = R"("model":"fake","messages":[{"role":"user","content":"u"}])";
  const SseEvents openai = ParseSse(
      Ask(HttpPost("/v1/chat/completions",
                   absl::StrCat("{", ask, R"(,"stream":true,"tool_choice":"required",)",
                                R"("tools":[{"type":"function","function":{"name":"f"}}]})"),
                   ""))
          .body);
  ASSERT_GE(openai.data.size(), 3u);
  EXPECT_THAT(absl::StrJoin(openai.data, "\n"), HasSubstr(R"("name":"f")"));
  EXPECT_THAT(openai.data[openai.data.size() - 2], HasSubstr(R"("finish_reason":"tool_calls")"));

  const HttpResponse whole = Ask(HttpPost(
      "/v1/messages", absl::StrCat("{", ask, R"(,"max_tokens":99,"tools":[{"name":"f"}]})"), ""));
  EXPECT_THAT(whole.body, HasSubstr(R"("name":"f","input":{"x":"é"}}])"));
  EXPECT_THAT(whole.body, HasSubstr(R"("stop_reason":"tool_use")"));

  const std::string tool = R"("input":"u","tools":[{"type":"function","name":"f"}])";
  const HttpResponse response =
      Ask(HttpPost("/v1/responses", absl::StrCat(R"({"model":"fake",)", tool, "}"), ""));
  EXPECT_THAT(response.body, HasSubstr(R"("name":"f","arguments":"{\"x\":\"é\"}")"));
  const SseEvents events =
      ParseSse(Ask(HttpPost("/v1/responses",
                            absl::StrCat(R"({"model":"fake","stream":true,)", tool, "}"), ""))
                   .body);
  ASSERT_FALSE(events.names.empty());
  EXPECT_EQ(events.names.front(), "response.created");
  EXPECT_EQ(events.names.back(), "response.completed");

  const HttpResponse refused = Ask(HttpPost(
      "/v1/messages", absl::StrCat("{", ask, R"(,"max_tokens":99,"tools":[{"name":"f g"}]})"), ""));
  EXPECT_EQ(refused.status, 400);
  EXPECT_THAT(refused.body, HasSubstr(R"(tools[0].name is \"f g\"; it must be of a-z)"));
}

TEST_F(HttpServiceTest, OutputFormatsInEveryShape) {
  FakeWorker& worker =
      AddWorker({.script = PlaySteps(StepsOf("hm</think>{\"age\":7}"), v1::FINISH_REASON_STOP)});
  StartHttp();
  const std::string ask = R"("model":"fake","messages":[{"role":"user","content":"u"}])";
  const std::string schema = R"("schema":{"properties":{"z":{"type":"integer"},"a":{}}})";
  const struct {
    const char* path;
    std::string body;
    const char* answer;  // all of it that is no thought
  } kCases[] = {
      {"/v1/chat/completions",
       absl::StrCat("{", ask, R"(,"thinking":{"type":"enabled"},"response_format":)",
                    R"({"type":"json_schema","json_schema":{"name":"n",)", schema, "}}}"),
       R"("content":"{\"age\":7}")"},
      {"/v1/responses",
       absl::StrCat(R"({"model":"fake","input":"u","reasoning":{"effort":"low"},"text":{"format":)",
                    R"({"type":"json_schema","name":"n",)", schema, "}}}"),
       R"("text":"{\"age\":7}")"},
      {"/v1/messages",
       absl::StrCat("{", ask, R"(,"max_tokens":99,"thinking":{"type":"enabled"},)",
                    R"("output_config":{"format":{"type":"json_schema",)", schema, "}}}"),
       R"("text":"{\"age\":7}")"},
  };
  for (const auto& one : kCases) {
    const HttpResponse response = Ask(HttpPost(one.path, one.body, ""));
    EXPECT_EQ(response.status, 200) << response.body;
    EXPECT_THAT(response.body, HasSubstr(one.answer));
    EXPECT_EQ(worker.last_request().output_format().json_schema(),
              R"({"properties":{"z":{"type":"integer"},"a":{}}})");
    EXPECT_TRUE(worker.last_request().has_output_format_after_token_id());
  }
  const HttpResponse refused = Ask(HttpPost(
      "/v1/messages",
      absl::StrCat("{", ask, R"(,"max_tokens":9,"output_format":{"type":"json_schema","schema":)",
                   R"({"properties":{"a b":{"type":"number","not":{}}}}}})"),
      ""));
  EXPECT_EQ(refused.status, 400);
  EXPECT_THAT(refused.body, HasSubstr(R"("output_format.schema.properties.a b: \"not\")"));
}

TEST_F(HttpServiceTest, TokensAreCountedAsTheAnswerWillCountThem) {
  AddWorker();
  StartHttp();
  const std::string ask = R"({"model":"fake","max_tokens":9,"system":"s","tools":[{"name":"f"}],)"
                          R"("messages":[{"role":"user","content":"u"}]})";
  const HttpResponse counted = Ask(HttpPost("/v1/messages/count_tokens", ask, ""));
  EXPECT_EQ(counted.status, 200);
  const int64_t num_tokens = counted.json().at("input_tokens").to_number<int64_t>();
  const HttpResponse answer = Ask(HttpPost("/v1/messages", ask, ""));
  EXPECT_EQ(answer.json().at("usage").at("input_tokens"), num_tokens);
  const HttpResponse refused =
      Ask(HttpPost("/v1/messages/count_tokens", R"({"model":"fake","messages":[]})", ""));
  EXPECT_EQ(refused.status, 400);
  EXPECT_THAT(refused.body, HasSubstr("messages has 0 entries"));
  EXPECT_THAT(refused.body, HasSubstr(R"("type":"error")"));
}

TEST_F(HttpServiceTest, ASlowReaderGetsEverything) {
  std::string text;
  for (int i = 0; i < 600; ++i) absl::StrAppend(&text, "line ", i, " of a long answer\n");
  FakeWorker::Options options;
  options.context_tokens = 100000;
  options.script = PlaySteps(StepsOf(text));
  AddWorker(std::move(options));
  StartHttp();
  HttpConnection connection(http_->port(), 4096);
  connection.Send(Completion(R"(,"max_tokens":50000)"));
  std::string received;
  while (!absl::StrContains(received, "0\r\n\r\n")) {
    const std::string more = connection.ReceiveUntil("\n", absl::Seconds(5));
    ASSERT_FALSE(more.empty()) << received.size();
    received += more;
    if (received.size() < 100000) absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_THAT(received, HasSubstr("[DONE]"));
  // Put together from the chunked coding by a second parse.
  HttpConnection again(http_->port());
  again.Send(Completion(R"(,"max_tokens":50000)"));
  EXPECT_EQ(ParseSse(again.Receive().body).Joined("text"), text);
}

TEST_F(HttpServiceTest, AClientThatDoesNotReadIsCutAndItsSlotFreed) {
  FakeWorker& worker = AddWorker({.context_tokens = 1 << 20});
  std::vector<FakeStep> endless(200000, {absl::ZeroDuration(), Encode("some words of text")});
  worker.SetScript(PlaySteps(std::move(endless)));
  StartHttp({.write_timeout = absl::Milliseconds(300)});
  HttpConnection connection(http_->port(), 4096);
  connection.Send(Completion(R"(,"max_tokens":1000000)"));
  EXPECT_TRUE(Eventually([&] { return worker.num_running() == 1; }));
  EXPECT_TRUE(Eventually([&] { return worker.num_cancelled() == 1; }));
  EXPECT_THAT(metrics_.Text(), HasSubstr("ultraspeed_router_http_write_timeouts_total 1"));
  EXPECT_TRUE(http_->AwaitIdle(absl::Seconds(5)));
}

TEST_F(HttpServiceTest, AClientThatLeavesIsNoticedInEveryState) {
  FakeWorker& worker = AddWorker({.max_running_requests = 1});
  worker.SetScript(PlayStepsThenHang(StepsOf("hello")));
  StartHttp();
  auto streaming = std::make_unique<HttpConnection>(http_->port());
  streaming->Send(Completion());
  EXPECT_THAT(streaming->ReceiveUntil(kText), HasSubstr(kText));

  // Waits in the queue: nothing is written and nothing read.
  auto queued = std::make_unique<HttpConnection>(http_->port());
  queued->Send(Completion());
  const auto num_streams = [&](int count) {
    return absl::StrContains(metrics_.Text(),
                             absl::StrCat("ultraspeed_router_active_streams ", count, "\n"));
  };
  EXPECT_TRUE(Eventually([&] { return num_streams(2); }));
  queued.reset();
  EXPECT_TRUE(Eventually([&] { return num_streams(1); }));
  EXPECT_EQ(worker.num_requests(), 1);
  EXPECT_EQ(worker.num_cancelled(), 0);

  streaming.reset();
  EXPECT_TRUE(Eventually([&] { return worker.num_cancelled() == 1; }));

  auto whole = std::make_unique<HttpConnection>(http_->port());
  whole->Send(Completion("", false));
  EXPECT_TRUE(Eventually([&] { return worker.num_running() == 1; }));
  whole.reset();
  EXPECT_TRUE(Eventually([&] { return worker.num_cancelled() == 2; }));
  EXPECT_EQ(worker.num_requests(), 2);
  EXPECT_TRUE(http_->AwaitIdle(absl::Seconds(5)));

  // At once, so that it may have left before there is a call.
  for (int i = 0; i < 50; ++i) HttpConnection(http_->port()).Send(Completion());
  EXPECT_TRUE(Eventually([&] { return num_streams(0) && worker.num_running() == 0; }));
  EXPECT_TRUE(http_->AwaitIdle(absl::Seconds(5)));
}

TEST_F(HttpServiceTest, AnswersThatNobodyGotAreCountedApart) {
  FakeWorker& worker = AddWorker();
  worker.SetScript(PlayStepsThenHang({}));
  StartHttp();
  for (int i = 0; i < 2; ++i) {
    HttpConnection connection(http_->port());
    connection.Send(Completion());
    EXPECT_TRUE(Eventually([&] { return worker.num_running() == 1; }));
    connection.Close();
    EXPECT_TRUE(Eventually([&] { return worker.num_cancelled() == i + 1; }));
  }
  EXPECT_TRUE(http_->AwaitIdle(absl::Seconds(5)));
  EXPECT_THAT(metrics_.Text(),
              HasSubstr("http_requests_total{code=\"499\",route=\"completions\"} 2"));
}

// Many clients at once, of whom some leave in the middle: nobody gets another's text, and nothing
// stays behind.
TEST_F(HttpServiceTest, AStormOfClientsLeavesNothingBehind) {
  FakeWorker& worker = AddWorker({.max_running_requests = 16});
  worker.SetScript(PlaySteps(StepsOf("hello world, how are you", absl::Milliseconds(2))));
  StartHttp();
  std::atomic<int> num_whole{0};
  std::vector<std::thread> clients;
  for (int client = 0; client < 8; ++client) {
    clients.emplace_back([&, client] {
      for (int i = 0; i < 12; ++i) {
        HttpConnection connection(http_->port());
        connection.Send(Completion("", i % 2 == 0));
        if ((client + i) % 3 == 0) {
          connection.ReceiveUntil("data:", absl::Milliseconds(i));
          continue;  // leaves
        }
        const HttpResponse response = connection.Receive();
        EXPECT_EQ(response.status, 200) << response.body;
        const std::string text =
            i % 2 == 0 ? ParseSse(response.body).Joined("text")
                       : response.json().at("choices").at(0).at("text").as_string().c_str();
        EXPECT_EQ(text, "hello world, how are you");
        ++num_whole;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(num_whole, 64);
  EXPECT_TRUE(Eventually([&] { return worker.num_running() == 0; }));
  EXPECT_TRUE(http_->AwaitIdle(absl::Seconds(5)));
}

TEST_F(HttpServiceTest, GarbageDoesNoHarm) {
  AddWorker();
  StartHttp({.header_timeout = absl::Milliseconds(50), .body_timeout = absl::Milliseconds(50)});
  std::mt19937_64 random(20261128);
  const std::string good = Completion();
  for (int i = 0; i < 300; ++i) {
    std::string bytes = good;
    for (int changes = 1 + static_cast<int>(random() % 4); changes > 0; --changes) {
      const size_t at = random() % bytes.size();
      switch (random() % 3) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes.erase(at, 1 + random() % 8);
          break;
        default:
          bytes.insert(at, 1 + random() % 8, static_cast<char>(random()));
      }
    }
    HttpConnection connection(http_->port());
    connection.Send(bytes);
    if (i % 4 == 0) connection.Receive(absl::Milliseconds(200));
  }
  EXPECT_EQ(ParseSse(Ask(good).body).Joined("text"), "hello world");
}

TEST_F(HttpServiceTest, SlowSendersAreTimedOut) {
  AddWorker();
  StartHttp({.header_timeout = absl::Milliseconds(150),
             .body_timeout = absl::Milliseconds(150),
             .idle_timeout = absl::Milliseconds(150)});
  HttpConnection silent(http_->port());
  EXPECT_TRUE(silent.IsClosed(absl::Seconds(3)));
  HttpConnection slow_head(http_->port());
  slow_head.Send("POST /v1/completions HTTP/1.1\r\nHost: a\r\n");
  EXPECT_EQ(slow_head.Receive().status, 408);
  HttpConnection slow_body(http_->port());
  slow_body.Send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{");
  EXPECT_EQ(slow_body.Receive().status, 408);
  HttpConnection idle(http_->port());
  idle.Send(HttpGetRequest("/healthz", ""));
  EXPECT_EQ(idle.Receive().status, 200);
  EXPECT_TRUE(idle.IsClosed(absl::Seconds(3)));
}

TEST_F(HttpServiceTest, ConnectionsAreBounded) {
  AddWorker();
  StartHttp({.connections_max = 2});
  HttpConnection first(http_->port()), second(http_->port());
  for (HttpConnection* connection : {&first, &second}) {
    connection->Send(HttpGetRequest("/healthz", ""));
    EXPECT_EQ(connection->Receive().status, 200);
  }
  HttpConnection third(http_->port());
  EXPECT_TRUE(third.IsClosed(absl::Seconds(3)));
  first.Close();
  EXPECT_TRUE(Eventually([&] { return Ask(HttpGetRequest("/healthz", "")).status == 200; }));
}

// What a client says and hears over TLS; empty if there is no connection.
std::string AskOverTls(int port, const Certificate& authority, const Certificate* own,
                       const std::string& request) {
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_client_method()),
                                                                  &SSL_CTX_free);
  SSL_CTX_load_verify_locations(context.get(), authority.cert_file().c_str(), nullptr);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  if (own != nullptr) {
    SSL_CTX_use_certificate_file(context.get(), own->cert_file().c_str(), SSL_FILETYPE_PEM);
    SSL_CTX_use_PrivateKey_file(context.get(), own->key_file().c_str(), SSL_FILETYPE_PEM);
  }
  const std::unique_ptr<BIO, decltype(&BIO_free_all)> bio(BIO_new_ssl_connect(context.get()),
                                                          &BIO_free_all);
  BIO_set_conn_hostname(bio.get(), absl::StrCat("127.0.0.1:", port).c_str());
  if (BIO_do_connect(bio.get()) != 1) return "";
  BIO_write(bio.get(), request.data(), static_cast<int>(request.size()));
  std::string answer;
  char block[4096];
  for (int num_read; (num_read = BIO_read(bio.get(), block, sizeof(block))) > 0;) {
    answer.append(block, static_cast<size_t>(num_read));
  }
  return answer;
}

TEST_F(HttpServiceTest, ServesTlsAndAsksForCertificatesWhereToldTo) {
  AddWorker();
  const Certificate server, client;
  StartHttp({.listen = "0.0.0.0:0",
             .tls = {.cert_file = server.cert_file(), .key_file = server.key_file()},
             .header_timeout = absl::Milliseconds(300)});
  const std::string stream =
      HttpPost("/v1/completions", R"({"model":"fake","prompt":"a","stream":true})", "",
               "Connection: close\r\n");
  EXPECT_THAT(AskOverTls(http_->port(), server, nullptr, stream), HasSubstr("[DONE]"));
  EXPECT_EQ(AskOverTls(http_->port(), client, nullptr, stream), "");  // of another authority
  HttpConnection in_the_clear(http_->port()), silent(http_->port());
  in_the_clear.Send(HttpGetRequest("/healthz", ""));
  EXPECT_TRUE(in_the_clear.IsClosed(absl::Seconds(3)));
  EXPECT_TRUE(silent.IsClosed(absl::Seconds(3)));

  http_.reset();
  StartHttpServer({.listen = "0.0.0.0:0",
                   .tls = {.cert_file = server.cert_file(),
                           .key_file = server.key_file(),
                           .ca_file = client.cert_file()}});
  EXPECT_EQ(AskOverTls(http_->port(), server, nullptr, stream), "");
  EXPECT_EQ(AskOverTls(http_->port(), server, &server, stream), "");  // not the authority's
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(AskOverTls(http_->port(), server, &client, stream), HasSubstr("[DONE]"));
  }
}

TEST_F(HttpServiceTest, DrainingLetsAnswersFinishAndClosesTheRest) {
  AddWorker({.script = PlaySteps(StepsOf("hello world, how are you", absl::Milliseconds(30)))});
  StartHttp();
  HttpConnection idle(http_->port());
  idle.Send(HttpGetRequest("/readyz", ""));
  EXPECT_EQ(idle.Receive().status, 200);
  HttpConnection streaming(http_->port());
  streaming.Send(Completion());
  EXPECT_THAT(streaming.ReceiveUntil(kText), HasSubstr(kText));
  http_->StopAccepting();
  EXPECT_TRUE(idle.IsClosed(absl::Seconds(3)));
  EXPECT_THAT(streaming.ReceiveUntil("[DONE]"), HasSubstr("[DONE]"));
  streaming.Close();
  EXPECT_TRUE(http_->AwaitIdle(absl::Seconds(3)));
  HttpConnection late(http_->port());
  EXPECT_FALSE(late.Send(HttpGetRequest("/healthz", "")) && late.Receive().status != 0);
}

TEST_F(HttpServiceTest, ADrainThatTakesTooLongTellsItsClients) {
  FakeWorker& worker = AddWorker();
  worker.SetScript(PlayStepsThenHang(StepsOf("hello")));
  StartHttp();
  HttpConnection streaming(http_->port());
  streaming.Send(Completion());
  EXPECT_THAT(streaming.ReceiveUntil(kText), HasSubstr(kText));
  http_->StopAccepting();
  std::thread drain([&] { http_->Drain(absl::Now() + absl::Milliseconds(100)); });
  EXPECT_THAT(streaming.ReceiveUntil("0\r\n\r\n"), HasSubstr("data: {\"error\":{"));
  streaming.Close();
  drain.join();
  EXPECT_TRUE(Eventually([&] { return worker.num_cancelled() == 1; }));
}

TEST_F(HttpServiceTest, EndingTheServerCutsWhatIsOpen) {
  FakeWorker& worker = AddWorker();
  worker.SetScript(PlayStepsThenHang(StepsOf("hello")));
  StartHttp();
  HttpConnection streaming(http_->port());
  streaming.Send(Completion());
  EXPECT_THAT(streaming.ReceiveUntil(kText), HasSubstr(kText));
  http_.reset();
  EXPECT_TRUE(streaming.IsClosed(absl::Seconds(3)));
  EXPECT_TRUE(Eventually([&] { return worker.num_cancelled() == 1; }));
}

TEST_F(HttpServiceTest, BadAddressesAreNamed) {
  AddWorker();
  StartRouter();
  const auto error = [&](const std::string& listen) {
    return HttpServer::Start({.listen = listen, .service = service_.get(), .metrics = &metrics_})
        .status();
  };
  EXPECT_THAT(std::string(error("nonsense").message()), HasSubstr("http-listen=nonsense"));
  EXPECT_EQ(error("0.0.0.0:0").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(error("127.0.0.1:99999999").code(), absl::StatusCode::kInvalidArgument);
  const auto first =
      HttpServer::Start({.listen = "127.0.0.1:0", .service = service_.get(), .metrics = &metrics_});
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(error(absl::StrCat("127.0.0.1:", (*first)->port())).code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace ultraspeed::router
