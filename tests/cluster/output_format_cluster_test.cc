// Answers that are held to a format, by the real programs: parsed, with the model's thoughts before
// them, and continued by another worker.
#include <boost/json.hpp>
#include <fstream>
#include <string>
#include <vector>

#include "tests/cluster/cluster_fixture.h"

namespace ultraspeed {
namespace {

namespace json = boost::json;

constexpr char kNumbersSchema[] =
    R"({"type": "array", "minItems": 80, "maxItems": 80,
        "items": {"type": "integer", "minimum": 100, "maximum": 999}})";
constexpr char kPersonSchema[] =
    R"({"type": "object", "additionalProperties": false, "required": ["name", "age"],
        "properties": {"name": {"type": "string", "maxLength": 20},
                       "age": {"type": "integer", "minimum": 0, "maximum": 150}}})";

class OutputFormatClusterTest : public ClusterTest {
 protected:
  static v1::GenerateRequest Numbers() {
    v1::GenerateRequest request = Request(1000);
    request.mutable_options()->mutable_output_format()->set_json_schema(kNumbersSchema);
    request.mutable_options()->mutable_sampling()->set_temperature(0.8f);
    request.mutable_options()->mutable_sampling()->set_seed(20261129);
    return request;
  }
};

TEST_F(OutputFormatClusterTest, AnotherWorkerGoesOnWithTheSameValue) {
  for (int i = 0; i < 2; ++i) StartWorker();
  StartRouter();
  const Answer undisturbed = Generate(Numbers());
  ASSERT_TRUE(undisturbed.status.ok()) << undisturbed.status.error_message();
  EXPECT_EQ(undisturbed.last().finish_reason(), v1::FINISH_REASON_STOP);
  const json::array numbers = json::parse(undisturbed.text).as_array();
  EXPECT_EQ(numbers.size(), 80u);
  for (const json::value& number : numbers) EXPECT_GE(number.to_number<int>(), 100);

  grpc::ClientContext context;
  AddKey(&context);
  auto reader = stub_->Generate(&context, Numbers());
  std::string text;
  v1::GenerateChunk chunk;
  while (text.size() < 60 && reader->Read(&chunk)) text += chunk.text();
  ASSERT_NE(KillBusyWorker(), 0);
  const Answer rest = Read(std::move(reader));
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(text + rest.text, undisturbed.text);
}

std::string ArgumentsOf(const std::vector<v1::GenerateChunk>& chunks) {
  std::string arguments;
  for (const v1::GenerateChunk& chunk : chunks) {
    for (const v1::ToolCallDelta& delta : chunk.tool_calls()) arguments += delta.arguments();
  }
  return arguments;
}

TEST_F(OutputFormatClusterTest, AnotherWorkerGoesOnInTheMiddleOfACall) {
  for (int i = 0; i < 2; ++i) StartWorker();
  StartRouter();
  v1::ChatRequest request;
  request.set_model(kModel);
  AddMessage(&request, v1::ROLE_USER, "Add many numbers.");
  v1::Tool* tool = request.add_tools();
  tool->set_name("add");
  tool->set_strict(true);
  tool->set_parameters_json(
      absl::StrCat(R"({"type":"object","required":["numbers"],"properties":{)", R"("numbers":)",
                   kNumbersSchema, "}}"));
  request.set_tool_choice(v1::TOOL_CHOICE_REQUIRED);
  request.set_parallel_tool_calls(false);
  *request.mutable_options() = Numbers().options();
  request.mutable_options()->clear_output_format();
  grpc::ClientContext context;
  AddKey(&context);
  const Answer undisturbed = Read(stub_->Chat(&context, request));
  ASSERT_TRUE(undisturbed.status.ok()) << undisturbed.status.error_message();
  EXPECT_EQ(undisturbed.last().finish_reason(), v1::FINISH_REASON_TOOL_CALLS);
  const std::string arguments = ArgumentsOf(undisturbed.chunks);
  EXPECT_EQ(json::parse(arguments).at("numbers").as_array().size(), 80u);

  grpc::ClientContext other_context;
  AddKey(&other_context);
  auto reader = stub_->Chat(&other_context, request);
  std::vector<v1::GenerateChunk> chunks;
  int num_tokens = 0;
  while (num_tokens < 60 && reader->Read(&chunks.emplace_back()))
    num_tokens += chunks.back().token_ids_size();
  ASSERT_NE(KillBusyWorker(), 0);
  const Answer rest = Read(std::move(reader));
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(ArgumentsOf(chunks) + ArgumentsOf(rest.chunks), arguments);
}

TEST_F(OutputFormatClusterTest, TheClientProgramsAnswersParse) {
  StartOneOfEach();
  const std::string schema_file = folder_ + "/person.json";
  std::ofstream(schema_file) << kPersonSchema;
  for (const char* const speculation : {"true", "false"}) {
    const auto client =
        Client({"chat", "--json-schema", schema_file, "--max-tokens=200", "--thinking=off",
                absl::StrCat("--speculation=", speculation), "Who was the first programmer?"});
    ASSERT_EQ(client->Wait(absl::Seconds(30)), 0) << client->Log();
    const json::object person = json::parse(client->Output()).as_object();
    EXPECT_EQ(person.size(), 2u);
    EXPECT_TRUE(person.at("name").is_string());
    EXPECT_LE(person.at("age").to_number<int>(), 150);
  }
}

// The bundled model was not taught to end its thoughts, so they are as long as it is allowed: an
// answer within them is cut, and no text follows.
TEST_F(OutputFormatClusterTest, ThoughtsComeFirst) {
  StartOneOfEach();
  v1::ChatRequest request;
  request.set_model(kModel);
  request.set_enable_thinking(true);
  AddMessage(&request, v1::ROLE_USER, "Name a person.");
  request.mutable_options()->set_max_tokens(120);
  request.mutable_options()->mutable_output_format()->set_json_schema(kPersonSchema);
  grpc::ClientContext context;
  AddKey(&context);
  const Answer answer = Read(stub_->Chat(&context, request));
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  ASSERT_TRUE(absl::StartsWith(answer.text, "<think>")) << answer.text;
  const size_t end = answer.text.find("</think>");
  if (end == std::string::npos) {
    EXPECT_EQ(answer.last().finish_reason(), v1::FINISH_REASON_LENGTH);
  } else {
    EXPECT_EQ(json::parse(answer.text.substr(end + 8)).as_object().size(), 2u);
  }
}

}  // namespace
}  // namespace ultraspeed
