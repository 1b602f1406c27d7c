#include "router/http/openai_reply.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "router/http/reasoning_splitter.h"
#include "router/http/reply_parts.h"
#include "router/unicode.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

constexpr char kDone[] = "data: [DONE]\n\n";
constexpr double kLogprobMin = -9999;  // JSON has no infinity

json::object UsageJson(const v1::Usage& usage) {
  // The prediction tokens are those of OpenAI's Predicted Outputs, not of our speculation.
  return {
      {"prompt_tokens", usage.prompt_tokens()},
      {"completion_tokens", usage.completion_tokens()},
      {"total_tokens", usage.prompt_tokens() + usage.completion_tokens()},
      {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens()}, {"audio_tokens", 0}}},
      {"completion_tokens_details",
       {{"reasoning_tokens", usage.reasoning_tokens()},
        {"audio_tokens", 0},
        {"accepted_prediction_tokens", 0},
        {"rejected_prediction_tokens", 0}}}};
}

double Finite(float logprob) {
  return std::isfinite(logprob) ? static_cast<double>(logprob) : kLogprobMin;
}

// A token may be a part of a character; U+FFFD stands for bytes that are none.
std::string ReadableToken(absl::string_view bytes) {
  std::string text;
  while (!bytes.empty()) {
    const int character_bytes = CharacterBytes(bytes);
    const size_t num_bytes = character_bytes > 0   ? static_cast<size_t>(character_bytes)
                             : character_bytes < 0 ? bytes.size()
                                                   : static_cast<size_t>(InvalidBytes(bytes));
    absl::StrAppend(&text, character_bytes > 0 ? bytes.substr(0, num_bytes) : "\xEF\xBF\xBD");
    bytes.remove_prefix(num_bytes);
  }
  return text;
}

// What the chat and the text shape have in common.
class OpenAiWriter : public ReplyWriter {
 public:
  OpenAiWriter(const OpenAiReplyOptions& options, ReplyContext context)
      : options_(options), context_(std::move(context)) {}

  std::string Events(const v1::GenerateChunk& chunk) final {
    std::string events;
    if (Note(chunk)) absl::StrAppend(&events, FirstEvent());
    const bool is_last = chunk.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
    if (auto choice = ChoiceOf(chunk, is_last)) absl::StrAppend(&events, EventOf(*choice));
    if (!is_last) return events;
    json::object end = Envelope(ChunkObject(), {LastChoice(FinishReason())});
    AddUsage(&end);
    end["ultraspeed"] = SpeedAndBill(last_);
    absl::StrAppend(&events, SseEvent("", end));
    if (options_.include_usage) {
      json::object usage = Envelope(ChunkObject(), {});
      usage["usage"] = UsageJson(last_.usage());
      absl::StrAppend(&events, SseEvent("", usage));
    }
    return absl::StrCat(events, kDone);
  }

  std::string Ping() const final { return ": ping\n\n"; }

  void Collect(const v1::GenerateChunk& chunk) final {
    Note(chunk);
    CollectText(chunk, chunk.finish_reason() != v1::FINISH_REASON_UNSPECIFIED);
    logprobs_.insert(logprobs_.end(), chunk.logprobs().begin(), chunk.logprobs().end());
  }

  std::string Body() final {
    json::object body = Envelope(WholeObject(), {WholeChoice()});
    body["usage"] = UsageJson(last_.usage());
    body["ultraspeed"] = SpeedAndBill(last_);
    return json::serialize(body);
  }

 protected:
  virtual const char* IdPrefix() const = 0;
  virtual const char* ChunkObject() const = 0;
  virtual const char* WholeObject() const = 0;
  // What a stream begins with, before any text.
  virtual std::string FirstEvent() = 0;
  // Nothing, if the chunk has nothing to say yet.
  virtual std::optional<json::object> ChoiceOf(const v1::GenerateChunk& chunk, bool is_last) = 0;
  virtual json::object LastChoice(const char* finish_reason) const = 0;
  virtual void CollectText(const v1::GenerateChunk& chunk, bool is_last) = 0;
  virtual json::object WholeChoice() = 0;

  std::string EventOf(json::object choice) const {
    json::object event = Envelope(ChunkObject(), {std::move(choice)});
    AddUsage(&event);
    return SseEvent("", event);
  }

  const char* FinishReason() const {
    if (last_.finish_reason() == v1::FINISH_REASON_LENGTH) return "length";
    return last_.finish_reason() == v1::FINISH_REASON_TOOL_CALLS ? "tool_calls" : "stop";
  }
  bool continuous_usage() const { return options_.continuous_usage; }
  // Of a whole answer.
  const std::vector<v1::TokenLogprob>& logprobs() const { return logprobs_; }

  std::string TokenBytes(int32_t id) const {
    return details_.tokenizer == nullptr ? "" : std::string(details_.tokenizer->TokenBytes(id));
  }

 private:
  // True for the first chunk. Keeps what the envelope tells; not the text.
  bool Note(const v1::GenerateChunk& chunk) {
    const bool is_first = last_.request_id().empty();
    if (is_first) details_ = context_.find_model(chunk.model());
    last_ = chunk;
    return is_first;
  }

  json::object Envelope(const char* object, json::array choices) const {
    const bool is_ultraspeed = last_.service_tier() == v1::SERVICE_TIER_ULTRASPEED;
    return {{"id", absl::StrCat(IdPrefix(), last_.request_id())},
            {"object", object},
            {"created", context_.created_unix_s},
            {"model", last_.model()},
            {"choices", std::move(choices)},
            {"service_tier", options_.own_tier_names ? OwnTierName(last_.service_tier())
                             : is_ultraspeed         ? "priority"
                                                     : "default"},
            {"system_fingerprint", SystemFingerprint(details_)}};
  }

  void AddUsage(json::object* event) const {
    if (options_.continuous_usage) {
      (*event)["usage"] = UsageJson(last_.usage());
    } else if (options_.include_usage) {
      (*event)["usage"] = nullptr;
    }
  }

  const OpenAiReplyOptions options_;
  const ReplyContext context_;
  ModelDetails details_;
  v1::GenerateChunk last_;
  std::vector<v1::TokenLogprob> logprobs_;
};

class ChatCompletionWriter final : public OpenAiWriter {
 public:
  using OpenAiWriter::OpenAiWriter;

 private:
  const char* IdPrefix() const override { return "chatcmpl-"; }
  const char* ChunkObject() const override { return "chat.completion.chunk"; }
  const char* WholeObject() const override { return "chat.completion"; }

  std::string FirstEvent() override {
    return EventOf(Choice({{"role", "assistant"}, {"content", ""}}, nullptr, nullptr));
  }

  std::optional<json::object> ChoiceOf(const v1::GenerateChunk& chunk, bool is_last) override {
    const ReasoningSplitter::Parts parts = splitter_.Take(chunk.text(), is_last);
    json::object delta;
    if (!parts.reasoning.empty()) delta["reasoning_content"] = parts.reasoning;
    if (!parts.content.empty()) delta["content"] = parts.content;
    if (chunk.tool_calls_size() > 0) delta["tool_calls"] = CallDeltas(chunk);
    json::value logprobs;
    if (chunk.logprobs_size() > 0) {
      logprobs = Logprobs({chunk.logprobs().begin(), chunk.logprobs().end()});
    }
    if (delta.empty() && logprobs.is_null() && !continuous_usage()) return std::nullopt;
    return Choice(std::move(delta), std::move(logprobs), nullptr);
  }

  json::object LastChoice(const char* finish_reason) const override {
    return Choice({}, nullptr, finish_reason);
  }

  void CollectText(const v1::GenerateChunk& chunk, bool is_last) override {
    const ReasoningSplitter::Parts parts = splitter_.Take(chunk.text(), is_last);
    absl::StrAppend(&whole_.reasoning, parts.reasoning);
    absl::StrAppend(&whole_.content, parts.content);
    JoinCalls(chunk, &calls_);
  }

  json::object WholeChoice() override {
    const bool is_call_only = whole_.content.empty() && !calls_.empty();
    json::object message = {
        {"role", "assistant"},
        {"content", is_call_only ? json::value(nullptr) : json::value(whole_.content)},
        {"refusal", nullptr}};
    if (!whole_.reasoning.empty()) message["reasoning_content"] = whole_.reasoning;
    if (!calls_.empty()) {
      json::array calls;
      for (const v1::ToolCallDelta& call : calls_) calls.push_back(CallJson(call));
      message["tool_calls"] = std::move(calls);
    }
    return {{"index", 0},
            {"message", std::move(message)},
            {"logprobs", logprobs().empty() ? json::value(nullptr) : Logprobs(logprobs())},
            {"finish_reason", FinishReason()}};
  }

  static json::object Choice(json::object delta, json::value logprobs, const char* finish_reason) {
    return {{"index", 0},
            {"delta", std::move(delta)},
            {"logprobs", std::move(logprobs)},
            {"finish_reason",
             finish_reason == nullptr ? json::value(nullptr) : json::value(finish_reason)}};
  }

  static json::object CallJson(const v1::ToolCallDelta& call) {
    return {{"id", call.id()},
            {"type", "function"},
            {"function", {{"name", call.name()}, {"arguments", call.arguments()}}}};
  }

  // Id, type and name stand in a call's first delta only.
  static json::array CallDeltas(const v1::GenerateChunk& chunk) {
    json::array deltas;
    for (const v1::ToolCallDelta& call : chunk.tool_calls()) {
      json::object delta = call.id().empty()
                               ? json::object{{"function", {{"arguments", call.arguments()}}}}
                               : CallJson(call);
      delta["index"] = call.index();
      deltas.push_back(std::move(delta));
    }
    return deltas;
  }

  json::object TokenJson(int32_t id, float logprob) const {
    const std::string bytes = TokenBytes(id);
    json::array numbers;
    for (const char c : bytes) numbers.emplace_back(static_cast<unsigned char>(c));
    return {{"token", ReadableToken(bytes)},
            {"logprob", Finite(logprob)},
            {"bytes", std::move(numbers)}};
  }

  json::value Logprobs(const std::vector<v1::TokenLogprob>& tokens) const {
    json::array content;
    for (const v1::TokenLogprob& token : tokens) {
      json::array top;
      for (int i = 0; i < std::min(token.top_token_ids_size(), token.top_logprobs_size()); ++i) {
        top.push_back(TokenJson(token.top_token_ids(i), token.top_logprobs(i)));
      }
      json::object one = TokenJson(token.token_id(), token.logprob());
      one["top_logprobs"] = std::move(top);
      content.push_back(std::move(one));
    }
    return json::object{{"content", std::move(content)}, {"refusal", nullptr}};
  }

  ReasoningSplitter splitter_;
  ReasoningSplitter::Parts whole_;
  std::vector<v1::ToolCallDelta> calls_;  // whole
};

class CompletionWriter final : public OpenAiWriter {
 public:
  using OpenAiWriter::OpenAiWriter;

 private:
  const char* IdPrefix() const override { return "cmpl-"; }
  const char* ChunkObject() const override { return "text_completion"; }
  const char* WholeObject() const override { return "text_completion"; }

  std::string FirstEvent() override { return ""; }

  std::optional<json::object> ChoiceOf(const v1::GenerateChunk& chunk, bool) override {
    if (chunk.text().empty() && chunk.logprobs_size() == 0 && !continuous_usage()) {
      return std::nullopt;
    }
    json::value logprobs;
    if (chunk.logprobs_size() > 0) {
      logprobs = Logprobs({chunk.logprobs().begin(), chunk.logprobs().end()});
    }
    return Choice(chunk.text(), std::move(logprobs), nullptr);
  }

  json::object LastChoice(const char* finish_reason) const override {
    return Choice("", nullptr, finish_reason);
  }

  void CollectText(const v1::GenerateChunk& chunk, bool) override {
    absl::StrAppend(&text_, chunk.text());
  }

  json::object WholeChoice() override {
    return Choice(text_, logprobs().empty() ? json::value(nullptr) : Logprobs(logprobs()),
                  FinishReason());
  }

  static json::object Choice(const std::string& text, json::value logprobs,
                             const char* finish_reason) {
    return {{"text", text},
            {"index", 0},
            {"logprobs", std::move(logprobs)},
            {"finish_reason",
             finish_reason == nullptr ? json::value(nullptr) : json::value(finish_reason)}};
  }

  json::value Logprobs(const std::vector<v1::TokenLogprob>& tokens) {
    json::array texts, values, tops, offsets;
    for (const v1::TokenLogprob& token : tokens) {
      const std::string bytes = TokenBytes(token.token_id());
      texts.emplace_back(ReadableToken(bytes));
      values.emplace_back(Finite(token.logprob()));
      offsets.emplace_back(offset_);
      // Characters: bytes that do not continue one.
      offset_ += std::count_if(bytes.begin(), bytes.end(), [](char c) {
        return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
      });
      json::object top;
      for (int i = 0; i < std::min(token.top_token_ids_size(), token.top_logprobs_size()); ++i) {
        top[ReadableToken(TokenBytes(token.top_token_ids(i)))] = Finite(token.top_logprobs(i));
      }
      tops.push_back(std::move(top));
    }
    return json::object{{"tokens", std::move(texts)},
                        {"token_logprobs", std::move(values)},
                        {"top_logprobs", std::move(tops)},
                        {"text_offset", std::move(offsets)}};
  }

  std::string text_;
  int64_t offset_ = 0;  // characters of the tokens so far
};

}  // namespace

std::unique_ptr<ReplyWriter> NewChatCompletionWriter(const OpenAiReplyOptions& options,
                                                     ReplyContext context) {
  return std::make_unique<ChatCompletionWriter>(options, std::move(context));
}

std::unique_ptr<ReplyWriter> NewCompletionWriter(const OpenAiReplyOptions& options,
                                                 ReplyContext context) {
  return std::make_unique<CompletionWriter>(options, std::move(context));
}

}  // namespace ultraspeed::router
