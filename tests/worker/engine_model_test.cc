// The engine over the CPU executor and the bundled model: what speculation, batching and failover
// must never change.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cstring>
#include <fstream>
#include <regex>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/grammar/constraint_cache.h"
#include "tests/worker/scripted_executor.h"
#include "worker/engine.h"
#include "worker/model/safetensors.h"
#include "worker/token_bytes.h"

namespace ultraspeed::worker {
namespace {

constexpr char kModel[] = "models/tiny-mimo";

// The code of the golden logits: 300 token ids.
std::vector<int32_t> GoldenPrompt() {
  const auto file = SafetensorsFile::Open(absl::StrCat(kModel, "/golden/logits.safetensors"));
  std::vector<int32_t> tokens;
  if (!file.ok()) return tokens;
  for (const TensorView& tensor : (*file)->tensors()) {
    if (tensor.name != "tokens") continue;
    tokens.resize(tensor.bytes / sizeof(int32_t));
    std::memcpy(tokens.data(), tensor.data, tensor.bytes);
  }
  return tokens;
}

class EngineModelTest : public testing::Test {
 protected:
  void Create() {
    ExecutorOptions options;
    options.model_folder = kModel;
    options.max_sequences = 4;
    options.max_batch_tokens = 128;
    options.kv_tokens = 4096;
    options.num_threads = 2;
    absl::StatusOr<std::unique_ptr<Executor>> executor = CreateCpuExecutor(options);
    ASSERT_TRUE(executor.ok()) << executor.status();
    engine_ = std::make_unique<Engine>(*std::move(executor), EngineOptions{}, RealClock(), nullptr);
  }
  std::shared_ptr<RecordingSink> Submit(const RequestSpec& spec) {
    auto sink = std::make_shared<RecordingSink>();
    const absl::Status status = engine_->Submit(spec, sink);
    EXPECT_TRUE(status.ok()) << status;
    return sink;
  }
  void RunAll() {
    while (engine_->Step()) engine_->CheckIntegrity();
  }
  RequestSpec Spec(const std::string& id, float temperature, bool speculation) {
    RequestSpec spec;
    spec.id = id;
    spec.prompt = GoldenPrompt();
    spec.max_tokens = 96;
    spec.sampling = {.temperature = temperature, .top_k = 0, .top_p = 0.95f, .seed = 1234};
    spec.speculation = speculation;
    return spec;
  }

  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineModelTest, SpeculationBatchAndChunksDoNotChangeTheText) {
  for (const float temperature : {0.0f, 1.0f}) {
    SCOPED_TRACE(testing::Message() << "temperature " << temperature);
    Create();
    const auto plain = Submit(Spec("plain", temperature, false));
    RunAll();
    const auto fast = Submit(Spec("fast", temperature, true));
    RunAll();
    EXPECT_EQ(fast->tokens, plain->tokens);
    EXPECT_LE(fast->usage.draft_rounds, plain->usage.draft_rounds);
    // Beside a standard, an ultraspeed and a longer prompt, all sampled otherwise.
    RequestSpec noise = Spec("noise", 1.3f, true);
    noise.sampling.seed = 9;
    RequestSpec noise_fast = noise;
    noise_fast.id = "noise_fast";
    noise_fast.tier = Tier::kUltraspeed;
    RequestSpec lengthy = noise;
    lengthy.id = "long";
    for (int i = 0; i < 3; ++i)
      lengthy.prompt.insert(lengthy.prompt.end(), noise.prompt.begin(), noise.prompt.end());
    Submit(lengthy);
    const auto busy = Submit(Spec("busy", temperature, true));
    Submit(noise);
    Submit(noise_fast);
    RunAll();
    EXPECT_EQ(busy->tokens, plain->tokens);
  }
}

TEST_F(EngineModelTest, AnotherWorkerContinuesExactly) {
  Create();
  const auto whole = Submit(Spec("whole", 1.0f, true));
  RunAll();
  ASSERT_EQ(whole->tokens.size(), 96u);
  Create();
  RequestSpec rest = Spec("rest", 1.0f, true);
  rest.prompt.insert(rest.prompt.end(), whole->tokens.begin(), whole->tokens.begin() + 37);
  rest.max_tokens -= 37;
  rest.resumed_tokens = 37;
  const auto continued = Submit(rest);
  RunAll();
  EXPECT_EQ(continued->tokens,
            std::vector<int32_t>(whole->tokens.begin() + 37, whole->tokens.end()));
}

// ---- Output formats

namespace json = boost::json;

constexpr char kPersonSchema[] = R"({
  "type": "object",
  "properties": {
    "name": {"type": "string", "maxLength": 12},
    "age": {"type": "integer", "minimum": 0, "maximum": 130},
    "kinds": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}
  },
  "required": ["name", "age", "kinds"],
  "additionalProperties": false
})";

class OutputFormatTest : public EngineModelTest {
 protected:
  void SetUp() override {
    Create();
    std::stringstream file;
    file << std::ifstream(absl::StrCat(kModel, "/tokenizer.json")).rdbuf();
    absl::StatusOr<std::vector<std::string>> bytes =
        ReadTokenBytes(file.str(), engine_->bounds().vocabulary);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    bytes_ = *bytes;
    constraints_ =
        std::make_unique<grammar::ConstraintCache>(std::make_shared<const grammar::Vocabulary>(
            *std::move(bytes), engine_->config().eos_token_ids));
  }
  RequestSpec PersonSpec(const std::string& id, float temperature, bool speculation) {
    RequestSpec spec = Spec(id, temperature, speculation);
    spec.stop_token_ids = engine_->config().eos_token_ids;
    const auto constraint = constraints_->ForJsonSchema(kPersonSchema, "schema");
    EXPECT_TRUE(constraint.ok()) << constraint.status();
    spec.output = {.constraint = *constraint, .after_token = -1, .before = nullptr};
    return spec;
  }
  std::string Text(const std::vector<int32_t>& tokens) const {
    std::string text;
    for (const int32_t token : tokens) text += bytes_[static_cast<size_t>(token)];
    return text;
  }

  std::vector<std::string> bytes_;
  std::unique_ptr<grammar::ConstraintCache> constraints_;
};

TEST_F(OutputFormatTest, HoldsWithAndWithoutSpeculationAlike) {
  for (const float temperature : {0.0f, 1.0f, 2.0f}) {
    for (int seed = 0; seed < 4; ++seed) {
      SCOPED_TRACE(testing::Message() << "temperature " << temperature << " seed " << seed);
      RequestSpec spec = PersonSpec("plain", temperature, false);
      spec.sampling.seed = static_cast<uint64_t>(seed);
      const auto plain = Submit(spec);
      RunAll();
      spec.id = "fast";
      spec.speculation = true;
      const auto fast = Submit(spec);
      const auto beside = Submit(Spec("beside", temperature, true));  // free, in the same rounds
      RunAll();
      EXPECT_EQ(fast->tokens, plain->tokens);
      EXPECT_EQ(beside->tokens.size(), 96u);
      EXPECT_EQ(fast->finish, FinishReason::kStop);
      boost::system::error_code error;
      const json::value value = json::parse(Text(fast->tokens), error);
      ASSERT_FALSE(error) << Text(fast->tokens);
      const json::object& person = value.as_object();
      EXPECT_EQ(person.size(), 3u);
      EXPECT_TRUE(person.at("name").is_string());
      EXPECT_LE(person.at("age").to_number<int>(), 130);
      EXPECT_LE(person.at("kinds").as_array().size(), 3u);
    }
  }
}

// Thoughts first, as long as the model likes; another worker goes on in the middle of either.
TEST_F(OutputFormatTest, BeginsAfterThoughtsAndGoesOnElsewhere) {
  RequestSpec spec = PersonSpec("whole", 1.0f, true);
  const auto newline = std::find(bytes_.begin(), bytes_.end(), "\n");
  ASSERT_NE(newline, bytes_.end());
  grammar::TokenMask before(engine_->bounds().vocabulary);
  for (int32_t token = 0; token < engine_->bounds().vocabulary; ++token) before.Allow(token);
  for (const int32_t token : spec.stop_token_ids) before.Forbid(token);
  spec.output.after_token = static_cast<int32_t>(newline - bytes_.begin());
  spec.output.before = std::make_shared<const grammar::TokenMask>(std::move(before));
  spec.max_tokens = 400;
  const auto whole = Submit(spec);
  RunAll();
  ASSERT_EQ(whole->finish, FinishReason::kStop);
  const auto end = std::find(whole->tokens.begin(), whole->tokens.end(), spec.output.after_token);
  ASSERT_NE(end, whole->tokens.end());
  boost::system::error_code error;
  json::parse(Text({end + 1, whole->tokens.end()}), error);
  EXPECT_FALSE(error) << Text(whole->tokens);
  const auto thoughts = static_cast<int>(end - whole->tokens.begin());
  for (const int resumed : {thoughts, thoughts + 1, thoughts + 5}) {
    RequestSpec rest = spec;
    rest.id = absl::StrCat("rest", resumed);
    rest.prompt.insert(rest.prompt.end(), whole->tokens.begin(), whole->tokens.begin() + resumed);
    rest.max_tokens -= resumed;
    rest.resumed_tokens = resumed;
    const auto continued = Submit(rest);
    RunAll();
    EXPECT_EQ(continued->tokens,
              std::vector<int32_t>(whole->tokens.begin() + resumed, whole->tokens.end()));
  }
  // What no worker can have produced.
  RequestSpec wrong = PersonSpec("wrong", 1.0f, true);
  wrong.resumed_tokens = 1;
  EXPECT_EQ(engine_->Submit(wrong, std::make_shared<RecordingSink>()).message(),
            "resumed_tokens=1: these last tokens of the prompt are not of the output format");
}

// ---- Calls of strict tools

constexpr char kFileSchema[] = R"({
  "type": "object",
  "properties": {
    "path": {"type": "string", "maxLength": 9},
    "lines": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 2},
    "mode": {"type": "string", "enum": ["read", "write"]},
    "force": {"type": "boolean"}
  },
  "required": ["path", "mode"],
  "additionalProperties": false
})";

// The bundled model never says <tool_call>, so a line break begins a call here.
class StrictToolsTest : public OutputFormatTest {
 protected:
  RequestSpec ToolSpec(const std::string& id, float temperature, bool speculation) {
    RequestSpec spec = Spec(id, temperature, speculation);
    spec.sampling.top_p = 1;
    spec.max_tokens = 160;
    const auto constraint =
        constraints_->ForTools({{"edit_file", true, kFileSchema}, {"now", true, ""}}, "tools");
    EXPECT_TRUE(constraint.ok()) << constraint.status();
    spec.output.constraint = *constraint;
    call_begin_ = IdOf("\n");
    call_end_ = IdOf("");  // some token that is no text
    grammar::TokenMask only_end(engine_->bounds().vocabulary);
    only_end.Allow(call_end_);
    spec.output.calls = {
        .begin = call_begin_,
        .end = call_end_,
        .only_end = std::make_shared<const grammar::TokenMask>(std::move(only_end))};
    return spec;
  }
  int32_t IdOf(const std::string& bytes) const {
    const auto token = std::find(bytes_.begin(), bytes_.end(), bytes);
    EXPECT_NE(token, bytes_.end());
    return static_cast<int32_t>(token - bytes_.begin());
  }
  // Bodies of the calls that are whole.
  std::vector<std::string> CallsIn(const std::vector<int32_t>& tokens) const {
    std::vector<std::string> calls;
    auto begin = tokens.end();
    for (auto token = tokens.begin(); token != tokens.end(); ++token) {
      if (begin == tokens.end() && *token == call_begin_) begin = token + 1;
      if (begin == tokens.end() || *token != call_end_) continue;
      calls.push_back(Text({begin, token}));
      begin = tokens.end();
    }
    return calls;
  }
  static void ExpectCall(const std::string& call) {
    static const std::regex form(
        "\n(<function=now>\n|<function=edit_file>\n<parameter=path>[^]*</parameter>\n"
        "(<parameter=lines>\\[[^]*\\]</parameter>\n)?<parameter=mode>(read|write)</parameter>\n"
        "(<parameter=force>[Tt]rue</parameter>\n|<parameter=force>[Ff]alse</parameter>\n)?)"
        "</function>\n");
    EXPECT_TRUE(std::regex_match(call, form)) << call;
  }

  int32_t call_begin_ = -1, call_end_ = -1;
};

TEST_F(StrictToolsTest, CallsAreHeldWithAndWithoutSpeculationAlike) {
  size_t num_calls = 0;
  for (const float temperature : {0.0f, 1.0f}) {
    for (int seed = 0; seed < 3; ++seed) {
      SCOPED_TRACE(testing::Message() << "temperature " << temperature << " seed " << seed);
      RequestSpec spec = ToolSpec("plain", temperature, false);
      spec.sampling.seed = static_cast<uint64_t>(seed);
      const auto plain = Submit(spec);
      RunAll();
      spec.id = "fast";
      spec.speculation = true;
      const auto fast = Submit(spec);
      Submit(Spec("beside", temperature, true));  // free, in the same rounds
      RunAll();
      EXPECT_EQ(fast->tokens, plain->tokens);
      const std::vector<std::string> calls = CallsIn(fast->tokens);
      for (const std::string& call : calls) ExpectCall(call);
      num_calls += calls.size();
    }
  }
  EXPECT_GE(num_calls, 3u);
}

// Until its first call the text is what it is without tools.
TEST_F(StrictToolsTest, TextOutsideOfCallsIsFree) {
  const RequestSpec spec = ToolSpec("held", 1.0f, true);
  const auto held = Submit(spec);
  RequestSpec free = spec;
  free.id = "free";
  free.output = {};
  const auto text = Submit(free);
  RunAll();
  const auto begin = std::find(held->tokens.begin(), held->tokens.end(), call_begin_);
  ASSERT_NE(begin, held->tokens.end());
  const auto num_free = static_cast<size_t>(begin + 1 - held->tokens.begin());
  EXPECT_EQ(std::vector(held->tokens.begin(), begin + 1),
            std::vector(text->tokens.begin(), text->tokens.begin() + static_cast<int>(num_free)));
}

// Wherever in a call; also one that the prompt begins.
TEST_F(StrictToolsTest, AnotherWorkerGoesOnInACall) {
  RequestSpec spec = ToolSpec("whole", 1.0f, true);
  spec.prompt.push_back(call_begin_);
  spec.begun_tokens = 1;
  const auto whole = Submit(spec);
  RunAll();
  std::vector<int32_t> tokens = whole->tokens;
  tokens.insert(tokens.begin(), call_begin_);
  ASSERT_FALSE(CallsIn(tokens).empty());
  for (const std::string& call : CallsIn(tokens)) ExpectCall(call);
  for (int resumed = 1; resumed < 40; resumed += 8) {
    RequestSpec rest = spec;
    rest.id = absl::StrCat("rest", resumed);
    rest.prompt.insert(rest.prompt.end(), whole->tokens.begin(), whole->tokens.begin() + resumed);
    rest.max_tokens -= resumed;
    rest.resumed_tokens = resumed;
    const auto continued = Submit(rest);
    RunAll();
    EXPECT_EQ(continued->tokens,
              std::vector<int32_t>(whole->tokens.begin() + resumed, whole->tokens.end()));
  }
  const auto refused = [&](RequestSpec wrong) {
    return std::string(engine_->Submit(wrong, std::make_shared<RecordingSink>()).message());
  };
  RequestSpec wrong = spec;
  wrong.prompt.push_back(call_begin_ + 1);
  wrong.begun_tokens = 2;
  EXPECT_EQ(refused(wrong),
            "resumed_tokens=0: these last tokens of the prompt, behind those of a call that has "
            "begun, are not of the output format");
  wrong = spec;
  wrong.begun_tokens = static_cast<int64_t>(spec.prompt.size()) + 1;
  EXPECT_EQ(refused(wrong), absl::StrCat("tool_calls.begun_tokens=", wrong.begun_tokens,
                                         ": must be in 0..", spec.prompt.size()));
}

}  // namespace
}  // namespace ultraspeed::worker
