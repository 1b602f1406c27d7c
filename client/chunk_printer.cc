#include "client/chunk_printer.h"

#include <boost/json.hpp>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace ultraspeed::client {
namespace {

namespace json = boost::json;

absl::string_view FinishText(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_CANCELLED:
      return "cancelled";
    default:
      return "none";
  }
}

json::string ToJson(absl::string_view text) { return json::string(text.data(), text.size()); }

// JSON has no infinities; a log-probability of minus infinity becomes null.
json::value ToJson(double value) {
  return std::isfinite(value) ? json::value(value) : json::value(nullptr);
}

json::array ToJson(const std::vector<v1::TokenLogprob>& logprobs) {
  json::array out;
  for (const v1::TokenLogprob& one : logprobs) {
    json::array top;
    for (int i = 0; i < one.top_token_ids_size(); ++i) {
      top.push_back(json::object{{"token_id", one.top_token_ids(i)},
                                 {"logprob", ToJson(one.top_logprobs(i))}});
    }
    out.push_back(json::object{
        {"token_id", one.token_id()}, {"logprob", ToJson(one.logprob())}, {"top", std::move(top)}});
  }
  return out;
}

double TokensPerRound(const v1::Usage& usage) {
  if (usage.draft_rounds() == 0) return 0;
  return static_cast<double>(usage.completion_tokens()) / static_cast<double>(usage.draft_rounds());
}

json::object Stats(const v1::GenerateChunk& last) {
  const v1::Usage& usage = last.usage();
  const v1::Timing& timing = last.timing();
  return {{"request_id", last.request_id()},
          {"model", last.model()},
          {"tier", ToJson(TierText(last.service_tier()))},
          {"finish_reason", ToJson(FinishText(last.finish_reason()))},
          {"matched_stop", last.matched_stop()},
          {"seed", last.seed()},
          {"prompt_tokens", usage.prompt_tokens()},
          {"cached_tokens", usage.cached_tokens()},
          {"completion_tokens", usage.completion_tokens()},
          {"reasoning_tokens", usage.reasoning_tokens()},
          {"draft_rounds", usage.draft_rounds()},
          {"tokens_per_round", ToJson(TokensPerRound(usage))},
          {"queue_ms", ToJson(timing.queue_ms())},
          {"ttft_ms", ToJson(timing.ttft_ms())},
          {"decode_ms", ToJson(timing.decode_ms())},
          {"tokens_per_second", ToJson(timing.tokens_per_second())}};
}

// As json::serialize, but doubles as people write them (boost writes 1E0).
void AppendJson(const json::value& value, std::string* out) {
  if (const double* real = value.if_double()) {
    absl::StrAppendFormat(out, "%.10g", *real);
  } else if (const json::array* array = value.if_array()) {
    absl::string_view separator = "";
    out->push_back('[');
    for (const json::value& element : *array) {
      absl::StrAppend(out, separator);
      AppendJson(element, out);
      separator = ",";
    }
    out->push_back(']');
  } else if (const json::object* object = value.if_object()) {
    absl::string_view separator = "";
    out->push_back('{');
    for (const auto& member : *object) {
      absl::StrAppend(out, separator, json::serialize(json::string(member.key())), ":");
      AppendJson(member.value(), out);
      separator = ",";
    }
    out->push_back('}');
  } else {
    absl::StrAppend(out, json::serialize(value));
  }
}

void PrintLine(const json::value& value) {
  std::string line;
  AppendJson(value, &line);
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fputc('\n', stdout);
  std::fflush(stdout);
}

}  // namespace

absl::string_view TierText(v1::ServiceTier tier) {
  switch (tier) {
    case v1::SERVICE_TIER_STANDARD:
      return "standard";
    case v1::SERVICE_TIER_ULTRASPEED:
      return "ultraspeed";
    case v1::SERVICE_TIER_AUTO:
      return "auto";
    default:
      return "none";
  }
}

ChunkPrinter::ChunkPrinter(OutputForm form, bool stats_json)
    : form_(form), stats_json_(stats_json), start_(absl::Now()) {}

void ChunkPrinter::Print(const v1::GenerateChunk& chunk) {
  if (!first_token_ && chunk.token_ids_size() > 0) first_token_ = absl::Now();
  text_ += chunk.text();
  if (form_ == OutputForm::kText) {
    std::fwrite(chunk.text().data(), 1, chunk.text().size(), stdout);
    std::fflush(stdout);
  } else if (form_ == OutputForm::kStreamJson) {
    json::object line{
        {"text", chunk.text()},
        {"token_ids", json::array(chunk.token_ids().begin(), chunk.token_ids().end())}};
    if (chunk.logprobs_size() > 0)
      line["logprobs"] = ToJson({chunk.logprobs().begin(), chunk.logprobs().end()});
    line["completion_tokens"] = chunk.usage().completion_tokens();
    line["draft_rounds"] = chunk.usage().draft_rounds();
    if (chunk.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
      for (const auto& [key, value] : Stats(chunk)) line[key] = value;
    }
    PrintLine(line);
  } else {
    token_ids_.insert(token_ids_.end(), chunk.token_ids().begin(), chunk.token_ids().end());
    logprobs_.insert(logprobs_.end(), chunk.logprobs().begin(), chunk.logprobs().end());
  }
  last_ = chunk;
  last_.clear_text();
  last_.clear_token_ids();
  last_.clear_logprobs();
  if (!first_token_) return;
  const double seconds = absl::ToDoubleSeconds(absl::Now() - *first_token_);
  const double rate =
      seconds > 0.05 ? static_cast<double>(chunk.usage().completion_tokens()) / seconds : 0;
  status_line_.Update(absl::StrFormat(
      " %d tokens  %.0f tokens/s  %.2f tokens/round  %s ", chunk.usage().completion_tokens(), rate,
      TokensPerRound(chunk.usage()), TierText(chunk.service_tier())));
}

std::string ChunkPrinter::StatsText() const {
  const v1::Usage& usage = last_.usage();
  return absl::StrFormat(
      "%d prompt + %d completion tokens; first token %.1f ms; %.1f tokens/s; %.2f tokens/round; "
      "tier %s; finish %s",
      usage.prompt_tokens(), usage.completion_tokens(), last_.timing().ttft_ms(),
      last_.timing().tokens_per_second(), TokensPerRound(usage), TierText(last_.service_tier()),
      FinishText(last_.finish_reason()));
}

void ChunkPrinter::Finish() {
  if (last_.request_id().empty()) return;  // nothing came
  if (form_ == OutputForm::kText) {
    if (!text_.empty() && text_.back() != '\n') std::fputc('\n', stdout);
    std::fflush(stdout);
    if (stats_json_) {
      PrintLine(Stats(last_));
    } else {
      std::fprintf(stderr, "%s\n", StatsText().c_str());
    }
  } else if (form_ == OutputForm::kJson) {
    json::object object{{"text", text_},
                        {"token_ids", json::array(token_ids_.begin(), token_ids_.end())}};
    if (!logprobs_.empty()) object["logprobs"] = ToJson(logprobs_);
    for (const auto& [key, value] : Stats(last_)) object[key] = value;
    PrintLine(object);
  } else if (stats_json_) {
    PrintLine(Stats(last_));
  }
}

}  // namespace ultraspeed::client
