// The HTTP front of a real router with a store, in front of a real worker with the bundled model:
// what an HTTP client sees, beside what a gRPC client sees.
#include <gmock/gmock.h>
#include <signal.h>

#include <boost/json.hpp>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "tests/cluster/eventually.h"
#include "tests/cluster/http_client.h"
#include "tests/cluster/process.h"
#include "tests/temporary_folder.h"
#include "ultraspeed/v1/inference.grpc.pb.h"
#include "ultraspeed/v1/worker.grpc.pb.h"

namespace ultraspeed {
namespace {

namespace json = boost::json;
using testing::BinFile;
using ::testing::HasSubstr;
using testing::HttpConnection;
using testing::HttpGetRequest;
using testing::HttpPost;
using testing::HttpResponse;
using ::testing::Not;
using testing::ParseSse;
using testing::Process;
using testing::Server;
using testing::SseEvents;

constexpr char kCode[] =
    "def fibonacci(n):\\n    \\\"\\\"\\\"Return the n-th number.\\\"\\\"\\\"\\n";
constexpr char kQuestion[] = "Write a function that adds two numbers. \\u03c0 \\ud83d\\ude42";

template <typename Predicate>
bool Eventually(Predicate predicate, absl::Duration timeout = absl::Seconds(10)) {
  return ultraspeed::testing::Eventually(predicate, timeout);
}

struct GrpcAnswer {
  std::string text;
  v1::GenerateChunk last;
};

// One worker and one router for all tests; what a test sets up for itself it ends itself.
class HttpClusterTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    temporary_ = new TemporaryFolder();
    worker_ = StartWorker().release();
    router_ = StartRouter("router").release();
    open_key_ = NewTenant("open", "");
    tight_key_ = NewTenant("tight", "standard:requests_per_minute=2");
    poor_key_ = NewTenant("poor", "", "--monthly-budget=0.000001");
    stub_ = v1::Inference::NewStub(
                grpc::CreateChannel(router_->address(), grpc::InsecureChannelCredentials()))
                .release();
    EXPECT_TRUE(Eventually([] { return Ask(HttpGetRequest("/readyz", "")).status == 200; }));
    EXPECT_TRUE(
        Eventually([] { return Ask(HttpGetRequest("/v1/models", poor_key_)).status == 200; }));
  }
  static void TearDownTestSuite() {
    delete stub_;
    delete router_;
    delete worker_;
    delete temporary_;
  }

  static std::unique_ptr<Server> StartWorker() {
    auto worker = std::make_unique<Server>(
        temporary_->path(), "worker", "ultraspeed-worker",
        std::vector<std::string>{"--model=models/tiny-mimo", "--listen=127.0.0.1:0", "--threads=1",
                                 "--drain-timeout=30s", "--draft-cost=served-shape"});
    EXPECT_TRUE(worker->AwaitReady()) << worker->process().Log();
    return worker;
  }
  // All of them on the same store.
  static std::unique_ptr<Server> StartRouter(const std::string& name) {
    const std::string folder = temporary_->path();
    std::ofstream(folder + "/pepper") << "a pepper of some length";
    std::ofstream(folder + "/tokens") << "alice 0123456789abcdef0123456789abcdef\n";
    auto router = std::make_unique<Server>(
        folder, name, "ultraspeed-router",
        std::vector<std::string>{
            "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0",
            "--metrics-listen=127.0.0.1:0", "--store=sqlite:" + folder + "/store.db",
            "--pepper-file=" + folder + "/pepper", "--admin-token-file=" + folder + "/tokens",
            "--worker=" + worker_->address(), "--drain-timeout=20s"});
    EXPECT_TRUE(router->AwaitReady()) << router->process().Log();
    return router;
  }

  static std::string Admin(std::vector<std::string> words) {
    words.insert(words.begin(), {BinFile("ultraspeed"), "admin"});
    words.push_back(absl::StrCat("--server=127.0.0.1:", router_->admin_port()));
    words.push_back("--token-file=" + temporary_->path() + "/tokens");
    Process process(temporary_->path(), "admin", std::move(words));
    EXPECT_EQ(process.Wait(absl::Seconds(20)), 0) << process.Log();
    return process.Output();
  }
  // A key of a new tenant that may use both tiers.
  static std::string NewTenant(const std::string& id, const std::string& limits,
                               const std::string& more = "") {
    std::vector<std::string> words = {"tenants", "create", id,
                                      "--entitlements=tiny-*:standard,tiny-*:ultraspeed"};
    if (!limits.empty()) words.push_back("--limits=" + limits);
    if (!more.empty()) words.push_back(more);
    Admin(std::move(words));
    return std::string(absl::StripAsciiWhitespace(Admin({"keys", "create", id})));
  }

  static HttpResponse Ask(const std::string& request) {
    HttpConnection connection(router_->http_port());
    connection.Send(request);
    return connection.Receive();
  }
  static HttpResponse AskChat(const std::string& fields, const std::string& key = open_key_) {
    return Ask(
        HttpPost("/v1/chat/completions",
                 absl::StrCat(R"({"model":"tiny-mimo","messages":[{"role":"user","content":")",
                              kQuestion, "\"}],", fields, "}"),
                 key));
  }
  static HttpResponse AskCompletion(const std::string& fields, const std::string& key = open_key_) {
    return Ask(HttpPost(
        "/v1/completions",
        absl::StrCat(R"({"model":"tiny-mimo","prompt":")", kCode, "\",", fields, "}"), key));
  }
  // Runs until something ends it.
  static std::string LongCompletion(const std::string& key = open_key_) {
    return HttpPost("/v1/completions",
                    absl::StrCat(R"({"model":"tiny-mimo","prompt":")", kCode,
                                 R"(","max_tokens":8000,"ignore_eos":true,"stream":true})"),
                    key);
  }

  static void SetOptions(v1::GenerateOptions* options) {
    options->set_max_tokens(60);
    options->set_ignore_eos(true);
    options->mutable_sampling()->set_temperature(0.8f);
    options->mutable_sampling()->set_seed(4711);
  }
  static constexpr char kSameOptions[] =
      R"("max_tokens":60,"ignore_eos":true,"temperature":0.8,"seed":4711)";

  template <typename Reader>
  static GrpcAnswer ReadAll(std::unique_ptr<Reader> reader) {
    GrpcAnswer answer;
    v1::GenerateChunk chunk;
    while (reader->Read(&chunk)) {
      answer.text += chunk.text();
      answer.last = chunk;
    }
    EXPECT_TRUE(reader->Finish().ok());
    return answer;
  }
  static GrpcAnswer GrpcCompletion() {
    v1::GenerateRequest request;
    request.set_model("tiny-mimo");
    request.set_prompt(json::parse(absl::StrCat("\"", kCode, "\"")).as_string().c_str());
    SetOptions(request.mutable_options());
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + open_key_);
    return ReadAll(stub_->Generate(&context, request));
  }
  static GrpcAnswer GrpcChat() {
    v1::ChatRequest request;
    request.set_model("tiny-mimo");
    v1::ChatMessage* message = request.add_messages();
    message->set_role(v1::ROLE_USER);
    message->set_content(json::parse(absl::StrCat("\"", kQuestion, "\"")).as_string().c_str());
    SetOptions(request.mutable_options());
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + open_key_);
    return ReadAll(stub_->Chat(&context, request));
  }

  static int NumRunning() {
    const auto stub = v1::Worker::NewStub(
        grpc::CreateChannel(worker_->address(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    v1::GetLoadResponse response;
    EXPECT_TRUE(stub->GetLoad(&context, {}, &response).ok());
    return response.running_requests();
  }

  static void ExpectUsage(const json::value& usage, const v1::Usage& expected) {
    EXPECT_EQ(usage.at("prompt_tokens"), expected.prompt_tokens());
    EXPECT_EQ(usage.at("completion_tokens"), expected.completion_tokens());
    EXPECT_EQ(usage.at("total_tokens"), expected.prompt_tokens() + expected.completion_tokens());
  }

  static TemporaryFolder* temporary_;
  static Server* worker_;
  static Server* router_;
  static v1::Inference::Stub* stub_;
  static std::string open_key_, tight_key_, poor_key_;
};

TemporaryFolder* HttpClusterTest::temporary_ = nullptr;
Server* HttpClusterTest::worker_ = nullptr;
Server* HttpClusterTest::router_ = nullptr;
v1::Inference::Stub* HttpClusterTest::stub_ = nullptr;
std::string HttpClusterTest::open_key_, HttpClusterTest::tight_key_, HttpClusterTest::poor_key_;

// ---- Strict tools: the bundled model was never taught to call, and calls as it is told ----

constexpr char kStrictFields[] = R"("name":"book","description":"Books a table.","strict":true,)";
constexpr char kStrictSchema[] = R"({"type":"object","properties":{
    "guest":{"type":"string","maxLength":12,"description":"who comes"},
    "people":{"type":"integer","minimum":1,"maximum":20},
    "place":{"enum":["inside","outside"]},
    "wishes":{"type":"array","items":{"type":"object","properties":{"dish":{"enum":["soup","fish"]},
        "hot":{"type":["boolean","null"]}},"required":["dish","hot"],"additionalProperties":false},"minItems":1,"maxItems":2},
    "note":{"anyOf":[{"type":"string","maxLength":5},{"type":"null"}]}},
  "required":["guest","people","place","wishes"],"additionalProperties":false})";

void ExpectABooking(const json::value& value) {
  const json::object& booking = value.as_object();
  EXPECT_LE(booking.at("guest").as_string().size(), 4u * 12u);
  EXPECT_GE(booking.at("people").to_number<int>(), 1);
  EXPECT_LE(booking.at("people").to_number<int>(), 20);
  const json::value& place = booking.at("place");
  EXPECT_TRUE(place == "inside" || place == "outside");
  const json::array& wishes = booking.at("wishes").as_array();
  EXPECT_TRUE(wishes.size() == 1 || wishes.size() == 2);
  for (const json::value& wish : wishes) {
    EXPECT_TRUE(wish.at("dish") == "soup" || wish.at("dish") == "fish");
    EXPECT_TRUE(wish.at("hot").is_bool() || wish.at("hot").is_null());
    EXPECT_EQ(wish.as_object().size(), 2u);
  }
  if (const json::value* note = booking.if_contains("note")) {
    EXPECT_TRUE(note->is_null() || note->is_string());
  }
  EXPECT_EQ(booking.size(), booking.contains("note") ? 5u : 4u);
}

TEST_F(HttpClusterTest, CallsOfStrictToolsKeepToTheirSchema) {
  for (const char* const speculation : {"true", "false"}) {
    for (const char* const choice :
         {R"("required")", R"({"type":"function","function":{"name":"book"}})"}) {
      const HttpResponse chat = AskChat(
          absl::StrCat(R"("max_tokens":300,"seed":5,"parallel_tool_calls":false,"speculation":)",
                       speculation, R"(,"tools":[{"type":"function","function":{)", kStrictFields,
                       R"("parameters":)", kStrictSchema, R"(}}],"tool_choice":)", choice));
      ASSERT_EQ(chat.status, 200) << chat.body;
      const json::value answer = chat.json().at("choices").at(0);
      EXPECT_EQ(answer.at("finish_reason"), "tool_calls");
      const json::value call = answer.at("message").at("tool_calls").at(0).at("function");
      EXPECT_EQ(call.at("name"), "book");
      ExpectABooking(json::parse(call.at("arguments").as_string()));
    }
  }
  const std::string ask = R"({"model":"tiny-mimo","seed":6,)";
  const HttpResponse responses = Ask(HttpPost(
      "/v1/responses",
      absl::StrCat(ask,
                   R"("input":"A table.","max_output_tokens":300,"parallel_tool_calls":false,)",
                   R"("tools":[{"type":"function",)", kStrictFields, R"("parameters":)",
                   kStrictSchema, R"(}],"tool_choice":"required"})"),
      open_key_));
  ASSERT_EQ(responses.status, 200) << responses.body;
  ExpectABooking(json::parse(responses.json().at("output").at(0).at("arguments").as_string()));
  const HttpResponse messages = Ask(HttpPost(
      "/v1/messages",
      absl::StrCat(ask, R"("messages":[{"role":"user","content":"A table."}],"max_tokens":300,)",
                   R"("tools":[{)", kStrictFields, R"("input_schema":)", kStrictSchema,
                   R"(}],"tool_choice":{"type":"any","disable_parallel_tool_use":true}})"),
      open_key_));
  ASSERT_EQ(messages.status, 200) << messages.body;
  EXPECT_EQ(messages.json().at("stop_reason"), "tool_use");
  ExpectABooking(messages.json().at("content").at(0).at("input"));
}

// ---- The same answers as by gRPC ----

TEST_F(HttpClusterTest, CompletionsSayWhatGrpcSays) {
  const GrpcAnswer expected = GrpcCompletion();
  ASSERT_FALSE(expected.text.empty());
  const HttpResponse whole = AskCompletion(kSameOptions);
  ASSERT_EQ(whole.status, 200) << whole.body;
  const json::value body = whole.json();
  EXPECT_EQ(body.at("choices").at(0).at("text").as_string().c_str(), expected.text);
  EXPECT_EQ(body.at("choices").at(0).at("finish_reason"), "length");
  EXPECT_EQ(body.at("ultraspeed").at("seed"), 4711);
  ExpectUsage(body.at("usage"), expected.last.usage());
  EXPECT_EQ(body.at("id").as_string().c_str(), "cmpl-" + whole.header("x-request-id"));
  EXPECT_EQ(whole.header("x-service-tier"), "standard");

  const HttpResponse streamed = AskCompletion(
      absl::StrCat(kSameOptions, R"(,"stream":true,"stream_options":{"include_usage":true},)"
                                 R"("service_tier":"ultraspeed")"));
  ASSERT_TRUE(streamed.is_complete) << streamed.body;
  EXPECT_EQ(streamed.header("x-service-tier"), "ultraspeed");
  const SseEvents events = ParseSse(streamed.body);
  EXPECT_EQ(events.Joined("text"), expected.text);
  ASSERT_GE(events.data.size(), 3u);
  EXPECT_EQ(events.data.back(), "[DONE]");
  const json::value usage = json::parse(events.data[events.data.size() - 2]);
  EXPECT_TRUE(usage.at("choices").as_array().empty());
  ExpectUsage(usage.at("usage"), expected.last.usage());
  EXPECT_EQ(usage.at("service_tier"), "ultraspeed");
}

TEST_F(HttpClusterTest, ChatSaysWhatGrpcSays) {
  const GrpcAnswer expected = GrpcChat();
  ASSERT_FALSE(expected.text.empty());
  const HttpResponse whole = AskChat(kSameOptions);
  ASSERT_EQ(whole.status, 200) << whole.body;
  const json::value message = whole.json().at("choices").at(0).at("message");
  EXPECT_EQ(message.at("content").as_string().c_str(), expected.text);
  ExpectUsage(whole.json().at("usage"), expected.last.usage());
  EXPECT_EQ(whole.json().at("service_tier"), "default");

  const HttpResponse streamed = AskChat(absl::StrCat(kSameOptions, R"(,"stream":true)"));
  const SseEvents events = ParseSse(streamed.body);
  EXPECT_EQ(events.Joined("content"), expected.text);
  EXPECT_EQ(json::parse(events.data[0]).at("choices").at(0).at("delta").at("role"), "assistant");
  EXPECT_EQ(json::parse(events.data[0]).at("system_fingerprint"),
            whole.json().at("system_fingerprint"));
}

TEST_F(HttpClusterTest, MessagesSayWhatGrpcSays) {
  const GrpcAnswer expected = GrpcChat();
  const auto ask = [&](const char* more) {
    return Ask(absl::StrReplaceAll(
        HttpPost("/v1/messages",
                 absl::StrCat(R"({"model":"tiny-mimo","messages":[{"role":"user","content":")",
                              kQuestion, "\"}],", kSameOptions, more, "}"),
                 open_key_),
        {{"Authorization: Bearer", "x-api-key:"}}));
  };
  const HttpResponse whole = ask("");
  ASSERT_EQ(whole.status, 200) << whole.body;
  EXPECT_EQ(whole.json().at("content").at(0).at("text").as_string().c_str(), expected.text);
  EXPECT_EQ(whole.json().at("usage").at("output_tokens"),
            expected.last.usage().completion_tokens());
  EXPECT_EQ(whole.json().at("stop_reason"), "max_tokens");
  EXPECT_EQ(whole.header("request-id"), whole.header("x-request-id"));
  EXPECT_EQ(whole.header("anthropic-ratelimit-requests-limit"),
            whole.header("x-ratelimit-limit-requests"));

  const SseEvents events = ParseSse(ask(R"(,"stream":true,"speed":"fast")").body);
  ASSERT_GE(events.names.size(), 6u);
  EXPECT_EQ(events.names.front(), "message_start");
  EXPECT_EQ(events.names.back(), "message_stop");
  std::string text;
  for (const std::string& data : events.data) {
    const json::value event = json::parse(data);
    if (event.at("type") == "content_block_delta") {
      text += event.at("delta").at("text").as_string().c_str();
    }
    if (event.at("type") == "message_delta") {
      EXPECT_EQ(event.at("usage").at("speed"), "fast");
    }
  }
  EXPECT_EQ(text, expected.text);

  const HttpResponse refused = ask(R"(,"temperature":3)");
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(refused.json().at("error").at("type"), "invalid_request_error");
  EXPECT_EQ(refused.json().at("request_id").as_string().c_str(), refused.header("request-id"));
}

TEST_F(HttpClusterTest, LogprobsSpellTheText) {
  const json::value chat =
      AskChat(R"("max_tokens":12,"temperature":0,"logprobs":true,"top_logprobs":2)").json();
  const json::value& choice = chat.at("choices").at(0);
  std::string spelled;
  for (const json::value& token : choice.at("logprobs").at("content").as_array()) {
    for (const json::value& byte : token.at("bytes").as_array()) {
      spelled += static_cast<char>(byte.to_number<int>());
    }
    ASSERT_EQ(token.at("top_logprobs").as_array().size(), 2u);
    EXPECT_EQ(token.at("top_logprobs").at(0).at("token"), token.at("token"));  // greedy
  }
  EXPECT_EQ(spelled, choice.at("message").at("content").as_string().c_str());

  const json::value text = AskCompletion(R"("max_tokens":12,"temperature":0,"logprobs":1)").json();
  const json::value& logprobs = text.at("choices").at(0).at("logprobs");
  spelled.clear();
  for (size_t i = 0; i < logprobs.at("tokens").as_array().size(); ++i) {
    EXPECT_EQ(logprobs.at("text_offset").at(i), spelled.size());
    spelled += logprobs.at("tokens").at(i).as_string().c_str();
  }
  EXPECT_EQ(spelled, text.at("choices").at(0).at("text").as_string().c_str());
}

TEST_F(HttpClusterTest, ModelsAndHealth) {
  const json::value models = Ask(HttpGetRequest("/v1/models", open_key_)).json();
  EXPECT_EQ(models.at("data").at(0).at("id"), "tiny-mimo");
  EXPECT_EQ(Ask(HttpGetRequest("/v1/models/tiny%2Dmimo", open_key_)).json(),
            models.at("data").at(0));
  EXPECT_EQ(Ask(HttpGetRequest("/v1/models/other", open_key_)).status, 404);
  EXPECT_EQ(Ask(HttpGetRequest("/v1/models", "")).status, 401);
  EXPECT_EQ(Ask(HttpGetRequest("/healthz", "")).body, "ok\n");
}

// ---- What is wrong is told ----

TEST_F(HttpClusterTest, EveryRefusalHasItsStatusAndNamesItsField) {
  const struct {
    const char* fields;
    int status;
    const char* param;
    const char* code;
  } kCases[] = {
      {R"("max_tokens":0)", 400, "max_tokens", nullptr},
      {R"("max_completion_tokens":0)", 400, "max_completion_tokens", nullptr},
      {R"("max_tokens":100000)", 400, "max_tokens", nullptr},
      {R"("max_tokens":8190)", 400, "max_tokens", "context_length_exceeded"},
      {R"("temperature":2.5)", 400, "temperature", nullptr},
      {R"("top_p":0)", 400, "top_p", nullptr},
      {R"("top_k":-1)", 400, "top_k", nullptr},
      {R"("logprobs":true,"top_logprobs":9)", 400, "top_logprobs", nullptr},
      {R"("stop":"")", 400, "stop[0]", nullptr},
      {R"("stop":["1","2","3","4","5","6","7","8","9"])", 400, "stop", nullptr},
      {R"("user":"a\u0007")", 400, "user", nullptr},
      {R"("tools":[{}])", 400, "tools[0].type", nullptr},
      {R"("tools":[{"type":"function","function":{"name":"a b"}}])", 400, "tools[0].function.name",
       nullptr},
      {R"("tools":[{"type":"function","function":{"name":"a","strict":true,"parameters":)"
       R"({"properties":{"b":{"type":"integer","not":{}}}}}}])",
       400, "tools[0].function.parameters.properties.b", nullptr},
      {R"("tool_choice":"required")", 400, "tool_choice", nullptr},
      {R"("response_format":{"type":"grammar"})", 400, "response_format.type", nullptr},
      {R"("ignore_eos":true,"response_format":{"type":"json_object"})", 400, "ignore_eos", nullptr},
      {R"("response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"not":{}}}})",
       400, "response_format.json_schema.schema", nullptr},
      {R"("model":"other")", 404, nullptr, "model_not_found"},
      {R"("messages":[])", 400, "messages", nullptr},
      {R"("messages":[{"role":"system","content":"a"}])", 400, "messages[0].role", nullptr},
      {R"("messages":[{"role":"assistant","content":""}])", 400, "messages[0].content", nullptr},
  };
  for (const auto& one : kCases) {
    const HttpResponse response = AskChat(one.fields);
    EXPECT_EQ(response.status, one.status) << one.fields << response.body;
    const json::object error = response.json().at("error").as_object();
    EXPECT_EQ(error.size(), 4u);
    EXPECT_EQ(error.at("param"),
              one.param == nullptr ? json::value(nullptr) : json::value(one.param))
        << response.body;
    EXPECT_EQ(error.at("code"), one.code == nullptr ? json::value(nullptr) : json::value(one.code))
        << response.body;
    EXPECT_THAT(error.at("message").as_string().c_str(), Not(HasSubstr("options.")));
  }
}

TEST_F(HttpClusterTest, KeysComeInThreeHeaders) {
  for (const char* header : {"Authorization: Bearer ", "api-key: ", "x-api-key: "}) {
    const std::string request =
        absl::StrCat("GET /v1/models HTTP/1.1\r\nHost: a\r\n", header, open_key_, "\r\n\r\n");
    EXPECT_EQ(Ask(request).status, 200) << header;
  }
  for (const char* header :
       {"Authorization: Bearer us-wrong", "api-key: x", "x-api-key: \xff\xfe", "x-api-key:"}) {
    const HttpResponse refused =
        Ask(absl::StrCat("GET /v1/models HTTP/1.1\r\nHost: a\r\n", header, "\r\n\r\n"));
    EXPECT_EQ(refused.status, 401) << header;
    EXPECT_EQ(refused.header("www-authenticate"), "Bearer");
  }
}

TEST_F(HttpClusterTest, LimitsAndBudgetsAreTold) {
  const HttpResponse first = AskCompletion(R"("max_tokens":1)", tight_key_);
  EXPECT_EQ(first.status, 200) << first.body;
  EXPECT_EQ(first.header("x-ratelimit-limit-requests"), "2");
  EXPECT_EQ(first.header("x-ratelimit-remaining-requests"), "1");
  EXPECT_THAT(first.header("x-ratelimit-reset-requests"), HasSubstr("s"));
  AskCompletion(R"("max_tokens":1)", tight_key_);
  const HttpResponse refused = AskCompletion(R"("max_tokens":1)", tight_key_);
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(refused.json().at("error").at("code"), "rate_limit_exceeded");
  EXPECT_THAT(refused.header("retry-after"), Not(""));
  EXPECT_EQ(refused.header("x-ratelimit-remaining-requests"), "0");

  const HttpResponse poor = AskCompletion(R"("max_tokens":1000)", poor_key_);
  EXPECT_EQ(poor.status, 402);
  EXPECT_EQ(poor.json().at("error").at("code"), "insufficient_quota");
}

TEST_F(HttpClusterTest, WhatIsNoRequestIsRefusedAndTheRouterGoesOn) {
  const std::string key = absl::StrCat("Authorization: Bearer ", open_key_, "\r\n");
  const struct {
    std::string request;
    int status;
  } kCases[] = {
      {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 404},
      {"GET /v1/chat/completions HTTP/1.1\r\nHost: a\r\n\r\n", 405},
      {"DELETE /v1/models HTTP/1.1\r\nHost: a\r\n\r\n", 405},
      {"GET /healthz HTTP/1.1\r\n\r\n", 400},
      {"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
      {"GET /healthz HTTP/3.0\r\nHost: a\r\n\r\n", 400},
      {"garbage\r\n\r\n", 400},
      {std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 15), 400},
      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},
      {"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + std::string(70000, 'x') + "\r\n\r\n", 431},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n", 413},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: "
       "6\r\n\r\n{}",
       400},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n{}", 400},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n{}", 400},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: "
       "2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
       400},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n", 417},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: "
       "2\r\n\r\n{}",
       415},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: "
       "2\r\n\r\n{}",
       415},
      {HttpPost("/v1/completions", "{\"model\":\"\xff\"}", open_key_), 400},
      {HttpPost("/v1/completions", std::string(100000, '['), open_key_), 400},
      {HttpPost("/v1/completions", "", open_key_), 400},
  };
  for (const auto& one : kCases) {
    const HttpResponse response = Ask(one.request);
    EXPECT_EQ(response.status, one.status) << one.request.substr(0, 200) << response.body;
    EXPECT_TRUE(response.is_complete);
    EXPECT_EQ(response.json().at("error").as_object().size(), 4u) << response.body;
    EXPECT_THAT(response.header("x-request-id"), Not(""));
  }
  EXPECT_EQ(Ask("DELETE /v1/models HTTP/1.1\r\nHost: a\r\n\r\n").header("allow"), "GET, HEAD");
  EXPECT_EQ(AskCompletion(R"("max_tokens":1)").status, 200);
  EXPECT_FALSE(router_->process().HasEnded());
}

// ---- Connections ----

TEST_F(HttpClusterTest, OneConnectionServesManyRequests) {
  HttpConnection connection(router_->http_port());
  // A stream, then two requests at once, then one without a body.
  const std::string stream =
      HttpPost("/v1/completions",
               R"({"model":"tiny-mimo","prompt":"a","max_tokens":3,"stream":true})", open_key_);
  ASSERT_TRUE(connection.Send(stream));
  const HttpResponse streamed = connection.Receive();
  EXPECT_TRUE(streamed.is_complete);
  EXPECT_EQ(streamed.header("connection"), "keep-alive");
  ASSERT_TRUE(connection.Send(stream + HttpGetRequest("/v1/models", open_key_)));
  EXPECT_EQ(ParseSse(connection.Receive().body).data.back(), "[DONE]");
  EXPECT_EQ(connection.Receive().json().at("object"), "list");
  ASSERT_TRUE(connection.Send("\r\nHEAD /v1/models HTTP/1.1\r\nHost: a\r\nx-api-key: " + open_key_ +
                              "\r\n\r\n"));
  const HttpResponse head = connection.Receive(absl::Seconds(5), true);
  EXPECT_EQ(head.status, 200);
  EXPECT_THAT(head.header("content-length"), Not("0"));
  // A refusal does not end the connection either.
  ASSERT_TRUE(connection.Send(HttpPost("/v1/completions", "{}", open_key_)));
  EXPECT_EQ(connection.Receive().status, 400);
  ASSERT_TRUE(connection.Send("GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
  EXPECT_EQ(connection.Receive().header("connection"), "close");
  EXPECT_TRUE(connection.IsClosed(absl::Seconds(3)));
}

TEST_F(HttpClusterTest, BodiesMayComeInPiecesAndOnDemand) {
  const std::string head =
      absl::StrCat("POST /v1/completions HTTP/1.1\r\nHost: a\r\nx-api-key: ", open_key_, "\r\n");
  const std::string body = R"({"model":"tiny-mimo","prompt":"a","max_tokens":2})";
  HttpConnection chunked(router_->http_port());
  chunked.Send(head + "Transfer-Encoding: chunked\r\n\r\n");
  for (const char c : body) chunked.Send(absl::StrCat("1;x=y\r\n", std::string(1, c), "\r\n"));
  chunked.Send("0\r\nTrailer: x\r\n\r\n");
  EXPECT_EQ(chunked.Receive().status, 200);

  HttpConnection expecting(router_->http_port());
  expecting.Send(
      absl::StrCat(head, "Expect: 100-continue\r\nContent-Length: ", body.size(), "\r\n\r\n"));
  EXPECT_EQ(expecting.Receive(absl::Seconds(5)).status, 100);
  expecting.Send(body);
  EXPECT_EQ(expecting.Receive().status, 200);

  HttpConnection old(router_->http_port());
  const std::string stream = R"({"model":"tiny-mimo","prompt":"a","max_tokens":2,"stream":true})";
  old.Send(absl::StrCat("POST /v1/completions HTTP/1.0\r\nx-api-key: ", open_key_,
                        "\r\nContent-Length: ", stream.size(), "\r\n\r\n", stream));
  const HttpResponse until_close = old.Receive();
  EXPECT_EQ(until_close.header("transfer-encoding"), "");
  EXPECT_EQ(ParseSse(until_close.body).data.back(), "[DONE]");
}

TEST_F(HttpClusterTest, AClientThatLeavesFreesTheSlotWithinARound) {
  HttpConnection connection(router_->http_port());
  connection.Send(LongCompletion());
  EXPECT_THAT(connection.ReceiveUntil("\"text\""), HasSubstr("\"text\""));
  EXPECT_EQ(NumRunning(), 1);
  const absl::Time left = absl::Now();
  connection.Close();
  EXPECT_TRUE(Eventually([] { return NumRunning() == 0; }));
  EXPECT_LT(absl::Now() - left, absl::Milliseconds(500));
}

// ---- Money, metrics, logs ----

TEST_F(HttpClusterTest, ARequestIsBilledAsUsual) {
  const std::string key = NewTenant("billed", "");
  ASSERT_TRUE(Eventually([&] { return Ask(HttpGetRequest("/v1/models", key)).status == 200; }));
  const json::value answer = AskCompletion(kSameOptions, key).json();
  EXPECT_EQ(AskCompletion(R"("max_tokens":0)", key).status, 400);  // costs nothing
  json::value usage;
  ASSERT_TRUE(Eventually([&] {
    usage =
        Ask(HttpGetRequest("/v1/usage?bucket_width=1d&group_by=model,service_tier", key)).json();
    return !usage.at("data").as_array().empty();
  }));
  const json::value& row = usage.at("data").at(0).at("results").at(0);
  EXPECT_EQ(row.at("num_model_requests"), 1);
  EXPECT_EQ(row.at("input_tokens"), answer.at("usage").at("prompt_tokens"));
  EXPECT_EQ(row.at("output_tokens"), answer.at("usage").at("completion_tokens"));
  EXPECT_EQ(row.at("model"), "tiny-mimo");
  EXPECT_EQ(row.at("service_tier"), "standard");
  EXPECT_GT(row.at("cost_nanodollars").to_number<int64_t>(), 0);
  const HttpResponse refused = Ask(HttpGetRequest("/v1/usage?bucket_width=1y", key));
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(refused.json().at("error").at("param"), "bucket_width");
}

TEST_F(HttpClusterTest, MetricsCountAndLogsKeepSecrets) {
  const HttpResponse response = Ask(HttpPost(
      "/v1/completions", R"({"model":"tiny-mimo","prompt":"xylophone_sentinel","max_tokens":2})",
      open_key_, "X-Client-Request-Id: my-label\r\n"));
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(
      Ask(HttpPost("/v1/completions", R"({"prompt":"xylophone_sentinel"})", open_key_)).status,
      400);
  EXPECT_TRUE(Eventually([] {
    return absl::StrContains(router_->process().Log(), "\"client_request_id\":\"my-label\"");
  }));
  EXPECT_THAT(router_->process().Log(), Not(HasSubstr("xylophone_sentinel")));
  EXPECT_THAT(router_->process().Log(), Not(HasSubstr(open_key_)));
  const std::string metrics = testing::HttpGet(router_->metrics_port(), "/metrics");
  EXPECT_THAT(metrics, HasSubstr("ultraspeed_router_http_connections "));
  EXPECT_THAT(
      metrics,
      HasSubstr("ultraspeed_router_http_requests_total{code=\"200\",route=\"completions\"}"));
}

// ---- Rolling updates ----

TEST_F(HttpClusterTest, SigtermLetsRunningStreamsFinish) {
  const auto router = StartRouter("router-that-ends");
  ASSERT_TRUE(Eventually(
      [&] { return absl::StrContains(testing::HttpGet(router->http_port(), "/readyz"), "ok"); }));
  HttpConnection idle(router->http_port()), streaming(router->http_port());
  idle.Send(HttpGetRequest("/healthz", ""));
  EXPECT_EQ(idle.Receive().status, 200);
  streaming.Send(HttpPost("/v1/completions",
                          absl::StrCat(R"({"model":"tiny-mimo","prompt":")", kCode,
                                       R"(","max_tokens":150,"ignore_eos":true,"stream":true})"),
                          open_key_));
  std::string received = streaming.ReceiveUntil("\"text\"");
  router->process().Signal(SIGTERM);
  EXPECT_TRUE(idle.IsClosed(absl::Seconds(5)));
  received += streaming.ReceiveUntil("[DONE]");
  EXPECT_THAT(received, HasSubstr("\"finish_reason\":\"length\""));
  EXPECT_THAT(received, HasSubstr("[DONE]"));
  streaming.Close();
  EXPECT_EQ(router->process().Wait(absl::Seconds(10)), 0) << router->process().Log();
}

TEST_F(HttpClusterTest, TheRouterRefusesToListenOpenByMistake) {
  const auto status_of = [&](std::vector<std::string> flags) {
    flags.insert(flags.begin(), {BinFile("ultraspeed-router"), "--worker=127.0.0.1:1",
                                 "--listen=127.0.0.1:0", "--http-listen=0.0.0.0:0"});
    return Process(temporary_->path(), "router", flags).Wait(absl::Seconds(10));
  };
  EXPECT_EQ(status_of({"--no-auth"}), 1);
  EXPECT_EQ(status_of({"--store=sqlite:" + temporary_->path() + "/store.db",
                       "--pepper-file=" + temporary_->path() + "/pepper"}),
            1);  // off loopback without TLS
}

}  // namespace
}  // namespace ultraspeed
