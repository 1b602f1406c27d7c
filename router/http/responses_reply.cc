#include "router/http/responses_reply.h"

#include <boost/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "router/http/reasoning_splitter.h"
#include "router/http/reply_parts.h"
#include "router/json_text.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

enum class Kind { kReasoning, kMessage, kCall };

// One output item as far as it has come.
struct Item {
  Kind kind = Kind::kMessage;
  std::string id;
  std::string call_id, name;  // of a call
  std::string text;           // or a call's arguments
};

json::object PartOf(const Item& item, const std::string& text) {
  if (item.kind == Kind::kReasoning) return {{"type", "reasoning_text"}, {"text", text}};
  return {{"type", "output_text"},
          {"text", text},
          {"annotations", json::array()},
          {"logprobs", json::array()}};
}

// `is_begun`: nothing has come yet.
json::object ItemJson(const Item& item, const char* status, bool is_begun) {
  const std::string text = is_begun ? "" : item.text;
  const json::array content = is_begun ? json::array() : json::array{PartOf(item, text)};
  switch (item.kind) {
    case Kind::kReasoning:
      return {{"id", item.id},      {"type", "reasoning"},          {"summary", json::array()},
              {"content", content}, {"encrypted_content", nullptr}, {"status", status}};
    case Kind::kMessage:
      return {{"id", item.id},
              {"type", "message"},
              {"role", "assistant"},
              {"content", content},
              {"status", status}};
    case Kind::kCall:
      break;
  }
  return {{"id", item.id},     {"type", "function_call"}, {"call_id", item.call_id},
          {"name", item.name}, {"arguments", text},       {"status", status}};
}

json::object UsageJson(const v1::Usage& usage) {
  return {{"input_tokens", usage.prompt_tokens()},
          {"input_tokens_details",
           {{"cached_tokens", usage.cached_tokens()}, {"cache_write_tokens", 0}}},
          {"output_tokens", usage.completion_tokens()},
          {"output_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens()}}},
          {"total_tokens", usage.prompt_tokens() + usage.completion_tokens()}};
}

class ResponseWriter final : public ReplyWriter {
 public:
  ResponseWriter(json::object echo, bool own_tier_names, ReplyContext context)
      : echo_(std::move(echo)), own_tier_names_(own_tier_names), context_(std::move(context)) {}

  std::string Events(const v1::GenerateChunk& chunk) override {
    events_.emplace();
    Take(chunk);
    return *std::exchange(events_, std::nullopt);
  }

  std::string Ping() const override { return ": ping\n\n"; }

  void Collect(const v1::GenerateChunk& chunk) override { Take(chunk); }

  std::string Body() override { return json::serialize(Response()); }

 private:
  bool is_over() const { return last_.finish_reason() != v1::FINISH_REASON_UNSPECIFIED; }
  bool is_cut() const { return last_.finish_reason() == v1::FINISH_REASON_LENGTH; }

  void Take(const v1::GenerateChunk& chunk) {
    const bool is_first = last_.request_id().empty();
    last_ = chunk;
    if (is_first) {
      id_ = absl::StrReplaceAll(chunk.request_id(), {{"-", ""}});
      Tell("response.created", {{"response", Response()}});
      Tell("response.in_progress", {{"response", Response()}});
    }
    const ReasoningSplitter::Parts parts = splitter_.Take(chunk.text(), is_over());
    const auto append_call = [this](const auto& call) { AppendCall(call); };
    const auto append_text = [&] {
      AppendText(Kind::kReasoning, parts.reasoning);
      AppendText(Kind::kMessage, parts.content);
    };
    VisitInOrder(chunk, append_call, append_text, append_call);
    if (!is_over()) return;
    CloseItem(is_cut() ? "incomplete" : "completed");
    Tell(is_cut() ? "response.incomplete" : "response.completed", {{"response", Response()}});
  }

  void AppendText(Kind kind, const std::string& text) {
    if (text.empty()) return;
    if (!open_ || open_->kind != kind) {
      OpenItem({kind, kind == Kind::kReasoning ? "rs_" : "msg_", "", "", ""});
      Tell("response.content_part.added",
           Located({{"content_index", 0}, {"part", PartOf(*open_, "")}}));
    }
    open_->text += text;
    json::object data = Located({{"content_index", 0}, {"delta", text}});
    if (kind == Kind::kMessage) data["logprobs"] = json::array();
    Tell(kind == Kind::kMessage ? "response.output_text.delta" : "response.reasoning_text.delta",
         std::move(data));
  }

  void AppendCall(const v1::ToolCallDelta& call) {
    if (!call.id().empty()) OpenItem({Kind::kCall, "fc_", call.id(), call.name(), ""});
    if (call.arguments().empty() || !open_) return;
    open_->text += call.arguments();
    Tell("response.function_call_arguments.delta", Located({{"delta", call.arguments()}}));
  }

  // `item.id` is a prefix yet.
  void OpenItem(Item item) {
    CloseItem("completed");  // max_tokens cuts the last one only
    item.id = absl::StrCat(item.id, id_, items_.size());
    open_ = std::move(item);
    Tell("response.output_item.added",
         {{"output_index", items_.size()}, {"item", ItemJson(*open_, "in_progress", true)}});
  }

  void CloseItem(const char* status) {
    if (!open_) return;
    switch (open_->kind) {
      case Kind::kReasoning:
        Tell("response.reasoning_text.done",
             Located({{"content_index", 0}, {"text", open_->text}}));
        break;
      case Kind::kMessage:
        Tell("response.output_text.done",
             Located({{"content_index", 0}, {"text", open_->text}, {"logprobs", json::array()}}));
        break;
      case Kind::kCall:
        Tell("response.function_call_arguments.done",
             Located({{"name", open_->name}, {"arguments", open_->text}}));
        break;
    }
    if (open_->kind != Kind::kCall) {
      Tell("response.content_part.done",
           Located({{"content_index", 0}, {"part", PartOf(*open_, open_->text)}}));
    }
    json::object item = ItemJson(*open_, status, false);
    Tell("response.output_item.done", {{"output_index", items_.size()}, {"item", item}});
    items_.push_back(std::move(item));
    open_.reset();
  }

  // With the place of the open item.
  json::object Located(json::object data) const {
    data["item_id"] = open_->id;
    data["output_index"] = items_.size();
    return data;
  }

  void Tell(const char* type, json::object data) {
    if (!events_) return;
    data["type"] = type;
    data["sequence_number"] = sequence_number_++;
    absl::StrAppend(&*events_, SseEvent(type, data));
  }

  json::object Response() const {
    const bool is_ultraspeed = last_.service_tier() == v1::SERVICE_TIER_ULTRASPEED;
    json::object response = {
        {"id", "resp_" + id_},
        {"object", "response"},
        {"created_at", context_.created_unix_s},
        {"status", !is_over() ? "in_progress"
                   : is_cut() ? "incomplete"
                              : "completed"},
        {"error", nullptr},
        {"incomplete_details",
         is_cut() ? json::value({{"reason", "max_output_tokens"}}) : json::value(nullptr)},
        {"model", last_.model()},
        {"output", is_over() ? items_ : json::array()},
        {"usage", is_over() ? json::value(UsageJson(last_.usage())) : json::value(nullptr)},
        {"service_tier", own_tier_names_ ? OwnTierName(last_.service_tier())
                         : is_ultraspeed ? "priority"
                                         : "default"},
        {"store", false},
        {"background", false},
        {"previous_response_id", nullptr}};
    for (const auto& member : echo_) response[member.key()] = member.value();
    if (is_over()) response["ultraspeed"] = SpeedAndBill(last_);
    return response;
  }

  const json::object echo_;
  const bool own_tier_names_;
  const ReplyContext context_;
  std::string id_;  // of the request, without dashes
  v1::GenerateChunk last_;
  ReasoningSplitter splitter_;
  std::optional<Item> open_;
  json::array items_;                  // whole ones
  std::optional<std::string> events_;  // of the chunk that is being taken; absent: nobody streams
  int64_t sequence_number_ = 0;
};

}  // namespace

std::unique_ptr<ReplyWriter> NewResponseWriter(const std::string& echo, bool own_tier_names,
                                               ReplyContext context) {
  auto object = ParseJsonObject(echo, "echo");
  return std::make_unique<ResponseWriter>(object.ok() ? *std::move(object) : json::object(),
                                          own_tier_names, std::move(context));
}

}  // namespace ultraspeed::router
