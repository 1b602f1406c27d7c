// `ultraspeed`: generate, chat, models, tokenize over the public gRPC API. Synchronous; one thread
// reads, one waits for Ctrl-C.
#include <unistd.h>

#include <atomic>
#include <boost/json.hpp>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/admin.h"
#include "client/arguments.h"
#include "client/chunk_printer.h"
#include "client/exit_code.h"
#include "common/grpc_status.h"
#include "common/limits.h"
#include "common/server_main.h"
#include "common/status_macros.h"
#include "common/tls.h"
#include "google/protobuf/stubs/logging.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"
#include "ultraspeed/v1/inference.grpc.pb.h"

namespace ultraspeed::client {
namespace {

// Cancels one call when Ctrl-C comes.
class Interrupt {
 public:
  Interrupt(ShutdownSignal* signal, grpc::ClientContext* context)
      : thread_([this, signal, context] {
          while (!done_.load()) {
            if (!signal->WaitFor(absl::Milliseconds(10))) continue;
            context->TryCancel();
            return;
          }
        }) {}
  ~Interrupt() {
    done_.store(true);
    thread_.join();
  }

 private:
  std::atomic<bool> done_{false};
  std::thread thread_;
};

class Session {
 public:
  static absl::StatusOr<std::unique_ptr<Session>> Create(const Arguments& arguments,
                                                         ShutdownSignal* signal) {
    ASSIGN_OR_RETURN(auto credentials, CreateChannelCredentials(arguments.tls, arguments.server));
    grpc::ChannelArguments channel_arguments;
    channel_arguments.SetMaxReceiveMessageSize(limits::kGrpcMessageBytesMax);
    channel_arguments.SetMaxSendMessageSize(limits::kGrpcMessageBytesMax);
    channel_arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
    auto channel = grpc::CreateCustomChannel(arguments.server, credentials, channel_arguments);
    return std::unique_ptr<Session>(
        new Session(arguments, signal, v1::Inference::NewStub(channel)));
  }

  // With --wait: until a model is there. Fills in the model if none was named.
  absl::Status ChooseModel() {
    const bool has_name = !arguments_.model.empty();
    if (has_name && arguments_.wait == absl::ZeroDuration()) return absl::OkStatus();
    ASSIGN_OR_RETURN(const v1::ListModelsResponse response, ListModels());
    if (has_name) return absl::OkStatus();
    if (response.models_size() == 1) {
      arguments_.model = response.models(0).name();
      return absl::OkStatus();
    }
    if (response.models_size() == 0)
      return absl::UnavailableError("the server has no model yet; see --wait");
    return absl::InvalidArgumentError(
        "--model: the server has several models; see `ultraspeed models`");
  }

  // With --wait, asks again until some model has a ready worker.
  absl::StatusOr<v1::ListModelsResponse> ListModels() {
    const absl::Time give_up = absl::Now() + arguments_.wait;
    for (;;) {
      v1::ListModelsResponse response;
      const absl::Status status = Unary([&](grpc::ClientContext* context) {
        return stub_->ListModels(context, v1::ListModelsRequest(), &response);
      });
      bool ready = false;
      for (const v1::Model& model : response.models()) ready = ready || model.workers_ready() > 0;
      const bool again = absl::IsUnavailable(status) || (status.ok() && !ready);
      if (!again || absl::Now() >= give_up || signal_->WaitFor(absl::Milliseconds(100))) {
        if (status.ok()) return response;
        return status;
      }
    }
  }

  absl::StatusOr<v1::TokenizeResponse> Tokenize(const std::string& text) {
    RETURN_IF_ERROR(ChooseModel());
    v1::TokenizeRequest request;
    request.set_model(arguments_.model);
    request.set_text(text);
    request.set_parse_special(arguments_.parse_special);
    v1::TokenizeResponse response;
    RETURN_IF_ERROR(Unary([&](grpc::ClientContext* context) {
      return stub_->Tokenize(context, request, &response);
    }));
    return response;
  }

  absl::Status Generate(const std::string& prompt) {
    RETURN_IF_ERROR(ChooseModel());
    v1::GenerateRequest request;
    request.set_model(arguments_.model);
    request.set_prompt(prompt);
    *request.mutable_options() = arguments_.options;
    return Stream([&](grpc::ClientContext* context) { return stub_->Generate(context, request); })
        .first;
  }

  // One turn; appends the answer to the conversation.
  absl::Status Chat(const std::string& message) {
    RETURN_IF_ERROR(ChooseModel());
    if (conversation_.messages_size() == 0 && !arguments_.system.empty())
      AddMessage(v1::ROLE_SYSTEM, arguments_.system);
    AddMessage(v1::ROLE_USER, message);
    conversation_.set_model(arguments_.model);
    *conversation_.mutable_options() = arguments_.options;
    if (arguments_.enable_thinking) conversation_.set_enable_thinking(*arguments_.enable_thinking);
    auto [status, answer] =
        Stream([&](grpc::ClientContext* context) { return stub_->Chat(context, conversation_); });
    AddMessage(v1::ROLE_ASSISTANT, answer);
    return status;
  }

 private:
  using Reader = std::unique_ptr<grpc::ClientReader<v1::GenerateChunk>>;

  Session(const Arguments& arguments, ShutdownSignal* signal,
          std::unique_ptr<v1::Inference::Stub> stub)
      : arguments_(arguments), signal_(signal), stub_(std::move(stub)) {}

  void Prepare(grpc::ClientContext* context) const {
    if (!arguments_.api_key.empty())
      context->AddMetadata("authorization", absl::StrCat("Bearer ", arguments_.api_key));
    if (arguments_.deadline > absl::ZeroDuration()) {
      context->set_deadline(absl::ToChronoTime(absl::Now() + arguments_.deadline));
    }
  }

  absl::Status Unary(const std::function<grpc::Status(grpc::ClientContext*)>& call) const {
    grpc::ClientContext context;
    Prepare(&context);
    Interrupt interrupt(signal_, &context);
    return FromGrpcStatus(call(&context));
  }

  std::pair<absl::Status, std::string> Stream(
      const std::function<Reader(grpc::ClientContext*)>& open) const {
    grpc::ClientContext context;
    Prepare(&context);
    Interrupt interrupt(signal_, &context);
    const OutputForm form = arguments_.json          ? OutputForm::kJson
                            : arguments_.stream_json ? OutputForm::kStreamJson
                                                     : OutputForm::kText;
    ChunkPrinter printer(form, arguments_.stats_json);
    const Reader reader = open(&context);
    v1::GenerateChunk chunk;
    while (reader->Read(&chunk)) printer.Print(chunk);
    const absl::Status status = FromGrpcStatus(reader->Finish());
    printer.Finish();
    return {status, printer.text()};
  }

  void AddMessage(v1::Role role, const std::string& content) {
    v1::ChatMessage* message = conversation_.add_messages();
    message->set_role(role);
    message->set_content(content);
  }

  Arguments arguments_;
  ShutdownSignal* const signal_;
  const std::unique_ptr<v1::Inference::Stub> stub_;
  v1::ChatRequest conversation_;
};

void PrintModels(const v1::ListModelsResponse& response, bool as_json) {
  boost::json::array models;
  for (const v1::Model& model : response.models()) {
    boost::json::array tiers;
    std::string tier_words;
    for (const int tier : model.tiers()) {
      const std::string name(TierText(static_cast<v1::ServiceTier>(tier)));
      tiers.push_back(boost::json::string(name));
      absl::StrAppend(&tier_words, tier_words.empty() ? "" : ",", name);
    }
    if (!as_json) {
      std::cout << model.name() << "  context " << model.context_tokens() << "  workers "
                << model.workers_ready() << "  tiers " << tier_words << "\n";
    }
    models.push_back(boost::json::object{{"name", model.name()},
                                         {"context_tokens", model.context_tokens()},
                                         {"workers_ready", model.workers_ready()},
                                         {"tiers", std::move(tiers)},
                                         {"weights_sha256", model.weights_sha256()}});
  }
  if (as_json)
    std::cout << boost::json::serialize(boost::json::object{{"models", std::move(models)}}) << "\n";
}

absl::Status Converse(Session* session, ShutdownSignal* signal) {
  std::string line;
  while (!signal->WaitFor(absl::ZeroDuration())) {
    std::cerr << "> " << std::flush;
    if (!std::getline(std::cin, line)) return absl::OkStatus();
    if (line.empty()) continue;
    RETURN_IF_ERROR(session->Chat(line));
  }
  return absl::CancelledError("interrupted");
}

absl::Status Run(const Arguments& arguments, ShutdownSignal* signal) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, Session::Create(arguments, signal));
  if (arguments.command == Command::kModels) {
    ASSIGN_OR_RETURN(const v1::ListModelsResponse response, session->ListModels());
    PrintModels(response, arguments.json);
    return absl::OkStatus();
  }
  const bool converse = arguments.command == Command::kChat && arguments.words.empty() &&
                        arguments.file.empty() && isatty(STDIN_FILENO);
  if (converse) return Converse(session.get(), signal);
  ASSIGN_OR_RETURN(const std::string prompt, ReadPrompt(arguments));
  if (arguments.command == Command::kGenerate) return session->Generate(prompt);
  if (arguments.command == Command::kChat) return session->Chat(prompt);
  ASSIGN_OR_RETURN(const v1::TokenizeResponse response, session->Tokenize(prompt));
  const boost::json::array ids(response.token_ids().begin(), response.token_ids().end());
  std::cout << (arguments.json ? boost::json::serialize(boost::json::object{{"token_ids", ids}})
                               : boost::json::serialize(ids))
            << "\n";
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "admin") return RunAdmin(argc, argv);
  auto arguments = ParseArguments(argc, argv);
  if (!arguments.ok()) {
    std::cerr << "ultraspeed: " << arguments.status().message() << "\n";
    return kExitUsage;
  }
  if (!arguments->has_value()) return 0;
  google::protobuf::SetLogHandler(
      nullptr);  // bytes that are not UTF-8 are the server's to refuse, in one line
  ShutdownSignal signal;
  const absl::Status status = Run(**arguments, &signal);
  if (status.ok()) return 0;
  if (signal.WaitFor(absl::ZeroDuration())) return kExitInterrupted;
  std::cerr << "ultraspeed: " << absl::StatusCodeToString(status.code()) << ": " << status.message()
            << "\n";
  return ExitCode(status);
}

}  // namespace
}  // namespace ultraspeed::client

int main(int argc, char** argv) { return ultraspeed::client::Main(argc, argv); }
