#include "router/validation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/limits.h"

namespace ultraspeed::router {
namespace {

using ::testing::HasSubstr;

const ModelFacts kFacts = {"tiny", 4096, 4088, 0.75f, 0.9f, true};

v1::GenerateRequest Good() {
  v1::GenerateRequest request;
  request.set_model("tiny");
  request.set_prompt("Hello");
  return request;
}

v1::ChatRequest GoodChat() {
  v1::ChatRequest request;
  request.set_model("tiny");
  v1::ChatMessage* message = request.add_messages();
  message->set_role(v1::ROLE_USER);
  message->set_content("Hello");
  return request;
}

TEST(ValidationTest, DefaultsComeFromTheModel) {
  const auto params = ValidateGenerate(Good(), kFacts);
  ASSERT_TRUE(params.ok()) << params.status();
  EXPECT_FALSE(params->max_tokens.has_value());
  EXPECT_EQ(params->temperature, 0.75f);
  EXPECT_EQ(params->top_p, 0.9f);
  EXPECT_EQ(params->top_k, 0);
  EXPECT_FALSE(params->seed.has_value());
  EXPECT_EQ(params->service_tier, v1::SERVICE_TIER_AUTO);
  EXPECT_EQ(params->logprobs, -1);
  EXPECT_TRUE(params->speculation);
  EXPECT_FALSE(params->ignore_eos);
}

TEST(ValidationTest, ZerosThatWereSetAreKept) {
  v1::GenerateRequest request = Good();
  v1::GenerateOptions* options = request.mutable_options();
  options->mutable_sampling()->set_temperature(0);
  options->mutable_sampling()->set_seed(0);
  options->set_logprobs(0);
  options->set_speculation(false);
  const auto params = ValidateGenerate(request, kFacts);
  ASSERT_TRUE(params.ok());
  EXPECT_EQ(params->temperature, 0);
  EXPECT_EQ(params->seed, std::optional<uint64_t>(0));
  EXPECT_EQ(params->logprobs, 0);
  EXPECT_FALSE(params->speculation);
}

TEST(ValidationTest, EveryBoundIsAllowedItself) {
  v1::GenerateRequest request = Good();
  v1::GenerateOptions* options = request.mutable_options();
  options->set_max_tokens(4095);
  options->mutable_sampling()->set_temperature(2);
  options->mutable_sampling()->set_top_k(4088);
  options->mutable_sampling()->set_top_p(1);
  for (int i = 0; i < 8; ++i) options->add_stop(std::string(128, 'x'));
  options->set_service_tier(v1::SERVICE_TIER_ULTRASPEED);
  options->set_logprobs(8);
  options->set_client_request_id(std::string(128, 'i'));
  options->set_priority(-100);
  const auto params = ValidateGenerate(request, kFacts);
  ASSERT_TRUE(params.ok()) << params.status();
  EXPECT_EQ(params->max_tokens, 4095);
  EXPECT_EQ(params->stop.size(), 8u);
  EXPECT_EQ(params->priority, -100);
}

struct Refusal {
  const char* name;
  std::function<void(v1::GenerateRequest*)> spoil;
  std::vector<std::string> words;  // field, value, bound
};

class GenerateRefusalTest : public ::testing::TestWithParam<Refusal> {};

TEST_P(GenerateRefusalTest, NamesFieldValueAndBound) {
  v1::GenerateRequest request = Good();
  GetParam().spoil(&request);
  const absl::Status status = ValidateGenerate(request, kFacts).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  for (const std::string& word : GetParam().words)
    EXPECT_THAT(std::string(status.message()), HasSubstr(word));
}

v1::SamplingParams* Sampling(v1::GenerateRequest* request) {
  return request->mutable_options()->mutable_sampling();
}

INSTANTIATE_TEST_SUITE_P(
    Fields, GenerateRefusalTest,
    ::testing::Values(
        Refusal{"NoModel", [](auto* r) { r->clear_model(); }, {"model has 0 bytes", "1..256"}},
        Refusal{"LongModel",
                [](auto* r) { r->set_model(std::string(257, 'm')); },
                {"model has 257 bytes", "1..256"}},
        Refusal{"EmptyPrompt",
                [](auto* r) { r->clear_prompt(); },
                {"prompt has 0 bytes", "1..8388608"}},
        Refusal{"LongPrompt",
                [](auto* r) { r->set_prompt(std::string(limits::kPromptBytesMax + 1, 'a')); },
                {"prompt has 8388609 bytes", "1..8388608"}},
        Refusal{"PromptNotUtf8",
                [](auto* r) { r->set_prompt("ab\xFF"); },
                {"prompt is not UTF-8 at byte 2"}},
        Refusal{"MaxTokensZero",
                [](auto* r) { r->mutable_options()->set_max_tokens(0); },
                {"options.max_tokens is 0", "1..4095"}},
        Refusal{"MaxTokensNegative",
                [](auto* r) { r->mutable_options()->set_max_tokens(-1); },
                {"options.max_tokens is -1", "1..4095"}},
        Refusal{"MaxTokensSmallest",
                [](auto* r) {
                  r->mutable_options()->set_max_tokens(std::numeric_limits<int32_t>::min());
                },
                {"options.max_tokens is -2147483648", "1..4095"}},
        Refusal{"MaxTokensLargest",
                [](auto* r) {
                  r->mutable_options()->set_max_tokens(std::numeric_limits<int32_t>::max());
                },
                {"options.max_tokens is 2147483647", "1..4095"}},
        Refusal{"MaxTokensContext",
                [](auto* r) { r->mutable_options()->set_max_tokens(4096); },
                {"options.max_tokens is 4096", "1..4095"}},
        Refusal{"TemperatureLow",
                [](auto* r) { Sampling(r)->set_temperature(-0.5f); },
                {"options.sampling.temperature is -0.5", "0..2"}},
        Refusal{"TemperatureHigh",
                [](auto* r) { Sampling(r)->set_temperature(2.5f); },
                {"options.sampling.temperature is 2.5", "0..2"}},
        Refusal{"TemperatureNan",
                [](auto* r) { Sampling(r)->set_temperature(NAN); },
                {"options.sampling.temperature is nan", "0..2"}},
        Refusal{"TemperatureInfinite",
                [](auto* r) { Sampling(r)->set_temperature(INFINITY); },
                {"options.sampling.temperature is inf", "0..2"}},
        Refusal{"TopPZero",
                [](auto* r) { Sampling(r)->set_top_p(0); },
                {"options.sampling.top_p is 0", "at most 1"}},
        Refusal{"TopPHigh",
                [](auto* r) { Sampling(r)->set_top_p(1.5f); },
                {"options.sampling.top_p is 1.5", "at most 1"}},
        Refusal{"TopPNan",
                [](auto* r) { Sampling(r)->set_top_p(NAN); },
                {"options.sampling.top_p is nan", "at most 1"}},
        Refusal{"TopKNegative",
                [](auto* r) { Sampling(r)->set_top_k(-1); },
                {"options.sampling.top_k is -1", "0..4088"}},
        Refusal{"TopKHigh",
                [](auto* r) { Sampling(r)->set_top_k(4089); },
                {"options.sampling.top_k is 4089", "0..4088"}},
        Refusal{"ManyStops",
                [](auto* r) {
                  for (int i = 0; i < 9; ++i) r->mutable_options()->add_stop(std::string(1, 'x'));
                },
                {"options.stop has 9 strings", "0..8"}},
        Refusal{"EmptyStop",
                [](auto* r) {
                  r->mutable_options()->add_stop(std::string(1, 'x'));
                  r->mutable_options()->add_stop(std::string());
                },
                {"options.stop[1] has 0 bytes", "1..128"}},
        Refusal{"LongStop",
                [](auto* r) { r->mutable_options()->add_stop(std::string(129, 'x')); },
                {"options.stop[0] has 129 bytes", "1..128"}},
        Refusal{"Tier",
                [](auto* r) {
                  r->mutable_options()->set_service_tier(static_cast<v1::ServiceTier>(9));
                },
                {"options.service_tier is 9", "0..3"}},
        Refusal{"LogprobsNegative",
                [](auto* r) { r->mutable_options()->set_logprobs(-1); },
                {"options.logprobs is -1", "0..8"}},
        Refusal{"LogprobsHigh",
                [](auto* r) { r->mutable_options()->set_logprobs(9); },
                {"options.logprobs is 9", "0..8"}},
        Refusal{"LongRequestId",
                [](auto* r) { r->mutable_options()->set_client_request_id(std::string(257, 'i')); },
                {"options.client_request_id has 257 bytes", "0..256"}},
        Refusal{"ControlInRequestId",
                [](auto* r) { r->mutable_options()->set_client_request_id("a\nb"); },
                {"options.client_request_id", "character 10 at byte 1"}},
        Refusal{"PriorityLow",
                [](auto* r) { r->mutable_options()->set_priority(-101); },
                {"options.priority is -101", "-100..100"}},
        Refusal{"PriorityHigh",
                [](auto* r) { r->mutable_options()->set_priority(101); },
                {"options.priority is 101", "-100..100"}}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(MaxTokensTest, RestOfTheContextWhenAbsent) {
  EXPECT_EQ(*MaxTokens({}, 96, kFacts), 4000);
  EXPECT_EQ(*MaxTokens({}, 4095, kFacts), 1);
  EXPECT_EQ(*MaxTokens({}, 1, {"large", 1 << 20, 152576, 1, 0.95f, true}), kDefaultMaxTokens);
}

TEST(MaxTokensTest, ExactlyTheRestMayBeAskedForButNotOneMore) {
  GenerationParams params;
  params.max_tokens = 4000;
  EXPECT_EQ(*MaxTokens(params, 96, kFacts), 4000);
  params.max_tokens = 4001;
  const absl::Status status = MaxTokens(params, 96, kFacts).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("options.max_tokens is 4001"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("1..4000"));
}

TEST(MaxTokensTest, APromptOneTokenTooLongNamesBothNumbers) {
  const absl::Status status = MaxTokens({}, 4096, kFacts).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("4096 tokens"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("1..4095"));
  EXPECT_FALSE(MaxTokens({}, 0, kFacts).ok());
}

TEST(ValidateChatTest, TurnsAndThinking) {
  v1::ChatRequest request = GoodChat();
  auto params = ValidateChat(request, kFacts);
  ASSERT_TRUE(params.ok()) << params.status();
  ASSERT_EQ(params->conversation.turns.size(), 1u);
  EXPECT_EQ(params->conversation.turns[0].content, "Hello");
  EXPECT_TRUE(params->enable_thinking);
  request.set_enable_thinking(false);
  EXPECT_FALSE(ValidateChat(request, kFacts)->enable_thinking);
}

void ExpectChatRefused(const v1::ChatRequest& request, const std::string& words) {
  const absl::Status status = ValidateChat(request, kFacts).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(words));
}

TEST(ValidateChatTest, NumberOfMessages) {
  v1::ChatRequest request = GoodChat();
  request.clear_messages();
  ExpectChatRefused(request, "messages has 0 entries; it must have 1..512");
  for (int i = 0; i < 513; ++i) *request.add_messages() = GoodChat().messages(0);
  ExpectChatRefused(request, "messages has 513 entries; it must have 1..512");
  request.mutable_messages()->RemoveLast();
  EXPECT_TRUE(ValidateChat(request, kFacts).ok());
}

TEST(ValidateChatTest, Roles) {
  v1::ChatRequest request = GoodChat();
  request.mutable_messages(0)->set_role(v1::ROLE_UNSPECIFIED);
  ExpectChatRefused(request, "messages[0].role is 0");
  request.mutable_messages(0)->set_role(static_cast<v1::Role>(7));
  ExpectChatRefused(request, "messages[0].role is 7");
  request.mutable_messages(0)->set_role(v1::ROLE_SYSTEM);
  ExpectChatRefused(request,
                    "messages[0].role is 1; it must be 2 (user), 3 (assistant) or 4 (tool) in the "
                    "last message");
}

TEST(ValidateChatTest, Contents) {
  v1::ChatRequest request = GoodChat();
  request.mutable_messages(0)->set_reasoning_content("hm");
  ExpectChatRefused(request, "messages[0].reasoning_content has 2 bytes");
  request = GoodChat();
  request.mutable_messages(0)->clear_content();
  ExpectChatRefused(request, "messages[0].content has 0 bytes");
  request.mutable_messages(0)->set_content("\xC3");
  ExpectChatRefused(request, "messages[0].content is not UTF-8 at byte 0");
  request.mutable_messages(0)->set_content(std::string(limits::kPromptBytesMax + 1, 'a'));
  ExpectChatRefused(request, "messages have 8388609 bytes together");
  request = GoodChat();
  request.mutable_options()->set_max_tokens(0);
  ExpectChatRefused(request, "options.max_tokens is 0");
}

TEST(ValidateTokenizeTest, Bounds) {
  v1::TokenizeRequest request;
  request.set_model("tiny");
  EXPECT_TRUE(ValidateTokenize(request).ok());
  request.set_text(std::string(limits::kPromptBytesMax + 1, 'a'));
  EXPECT_EQ(ValidateTokenize(request).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ultraspeed::router
