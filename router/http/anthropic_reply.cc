#include "router/http/anthropic_reply.h"

#include <algorithm>
#include <boost/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/http/reasoning_splitter.h"
#include "router/http/reply_parts.h"
#include "router/json_text.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

class MessageWriter final : public ReplyWriter {
 public:
  explicit MessageWriter(std::vector<std::string> stop_sequences)
      : stop_sequences_(std::move(stop_sequences)) {}

  std::string Events(const v1::GenerateChunk& chunk) override {
    std::string events;
    const bool is_first = last_.request_id().empty();
    const ReasoningSplitter::Parts parts = Take(chunk);
    if (is_first) {
      json::object message = Message({});
      message["usage"] = UsageJson(0);
      Append("message_start", {{"message", std::move(message)}}, &events);
    }
    const auto append_call = [&](const auto& call) { AppendCall(call, &events); };
    const auto append_text = [&] {
      AppendDelta(Block::kThinking, parts.reasoning, &events);
      AppendDelta(Block::kText, parts.content, &events);
    };
    VisitInOrder(chunk, append_call, append_text, append_call);
    if (!is_over()) return events;
    CloseBlock(&events);
    Append("message_delta",
           {{"delta", {{"stop_reason", StopReason()}, {"stop_sequence", StopSequence()}}},
            {"usage", UsageJson(last_.usage().completion_tokens())},
            {"ultraspeed", SpeedAndBill(last_)}},
           &events);
    Append("message_stop", {}, &events);
    return events;
  }

  std::string Ping() const override { return SseEvent("ping", {{"type", "ping"}}); }

  void Collect(const v1::GenerateChunk& chunk) override {
    const ReasoningSplitter::Parts parts = Take(chunk);
    absl::StrAppend(&whole_.reasoning, parts.reasoning);
    absl::StrAppend(&whole_.content, parts.content);
    JoinCalls(chunk, &calls_);
  }

  std::string Body() override {
    json::array content;
    if (!whole_.reasoning.empty()) {
      content.push_back(
          json::object{{"type", "thinking"}, {"thinking", whole_.reasoning}, {"signature", ""}});
    }
    if (!whole_.content.empty()) {
      content.push_back(json::object{{"type", "text"}, {"text", whole_.content}});
    }
    for (const v1::ToolCallDelta& call : calls_) {
      // Arguments that max_tokens cut are no object.
      auto input = ParseJsonObject(call.arguments(), "arguments");
      content.push_back(ToolUse(call, input.ok() ? *std::move(input) : json::object()));
    }
    json::object body = Message(std::move(content));
    body["stop_reason"] = StopReason();
    body["stop_sequence"] = StopSequence();
    body["usage"] = UsageJson(last_.usage().completion_tokens());
    body["ultraspeed"] = SpeedAndBill(last_);
    return json::serialize(body);
  }

 private:
  enum class Block { kNone, kThinking, kText, kToolUse };

  bool is_over() const { return last_.finish_reason() != v1::FINISH_REASON_UNSPECIFIED; }

  ReasoningSplitter::Parts Take(const v1::GenerateChunk& chunk) {
    last_ = chunk;
    return splitter_.Take(chunk.text(), is_over());
  }

  static void Append(const char* name, json::object data, std::string* events) {
    data["type"] = name;
    absl::StrAppend(events, SseEvent(name, data));
  }

  void AppendDelta(Block block, const std::string& text, std::string* events) {
    if (text.empty()) return;
    const bool is_thinking = block == Block::kThinking;
    const char* field = is_thinking ? "thinking" : "text";
    if (block_ != block) {
      CloseBlock(events);
      block_ = block;
      json::object begun = {{"type", field}, {field, ""}};
      if (is_thinking) begun["signature"] = "";
      Append("content_block_start", {{"index", block_idx_}, {"content_block", std::move(begun)}},
             events);
    }
    Append("content_block_delta",
           {{"index", block_idx_},
            {"delta", {{"type", is_thinking ? "thinking_delta" : "text_delta"}, {field, text}}}},
           events);
  }

  static json::object ToolUse(const v1::ToolCallDelta& call, json::object input) {
    return {{"type", "tool_use"},
            {"id", call.id()},
            {"name", call.name()},
            {"input", std::move(input)}};
  }

  void AppendCall(const v1::ToolCallDelta& call, std::string* events) {
    if (!call.id().empty()) {
      CloseBlock(events);
      block_ = Block::kToolUse;
      Append("content_block_start",
             {{"index", block_idx_}, {"content_block", ToolUse(call, json::object())}}, events);
    }
    Append("content_block_delta",
           {{"index", block_idx_},
            {"delta", {{"type", "input_json_delta"}, {"partial_json", call.arguments()}}}},
           events);
  }

  void CloseBlock(std::string* events) {
    if (block_ == Block::kNone) return;
    Append("content_block_stop", {{"index", block_idx_++}}, events);
    block_ = Block::kNone;
  }

  json::object Message(json::array content) const {
    return {{"id", absl::StrCat("msg_", last_.request_id())},
            {"type", "message"},
            {"role", "assistant"},
            {"model", last_.model()},
            {"content", std::move(content)},
            {"stop_reason", nullptr},
            {"stop_sequence", nullptr}};
  }

  // input_tokens are those that were not read from the cache.
  json::object UsageJson(int64_t output_tokens) const {
    const bool is_ultraspeed = last_.service_tier() == v1::SERVICE_TIER_ULTRASPEED;
    const v1::Usage& usage = last_.usage();
    return {{"input_tokens", usage.prompt_tokens() - usage.cached_tokens()},
            {"cache_creation_input_tokens", 0},
            {"cache_read_input_tokens", usage.cached_tokens()},
            {"output_tokens", output_tokens},
            {"service_tier", is_ultraspeed ? "priority" : "standard"},
            {"speed", is_ultraspeed ? "fast" : "standard"}};
  }

  bool ends_at_stop_sequence() const {
    return last_.finish_reason() == v1::FINISH_REASON_STOP &&
           std::find(stop_sequences_.begin(), stop_sequences_.end(), last_.matched_stop()) !=
               stop_sequences_.end();
  }
  const char* StopReason() const {
    if (last_.finish_reason() == v1::FINISH_REASON_LENGTH) return "max_tokens";
    if (last_.finish_reason() == v1::FINISH_REASON_TOOL_CALLS) return "tool_use";
    return ends_at_stop_sequence() ? "stop_sequence" : "end_turn";
  }
  json::value StopSequence() const {
    return ends_at_stop_sequence() ? json::value(last_.matched_stop()) : json::value(nullptr);
  }

  const std::vector<std::string> stop_sequences_;
  v1::GenerateChunk last_;
  ReasoningSplitter splitter_;
  ReasoningSplitter::Parts whole_;
  std::vector<v1::ToolCallDelta> calls_;  // whole
  Block block_ = Block::kNone;            // open in the stream
  int64_t block_idx_ = 0;
};

}  // namespace

std::unique_ptr<ReplyWriter> NewMessageWriter(std::vector<std::string> stop_sequences) {
  return std::make_unique<MessageWriter>(std::move(stop_sequences));
}

}  // namespace ultraspeed::router
