// What an answer's text is held to, as each API spells it. Private to router/http's request
// parsers. Pure.
//
// Sources: OpenAI API reference, `response_format` of "Create chat completion" and `text.format` of
// "Create a model response"; Anthropic API reference, `output_config.format` of "Create a Message",
// which was called `output_format` before. Surprising: answers keep to a schema whether its
// `strict` is true or false; its name and description tell the model nothing.
#pragma once

#include <string>

#include "router/http/request_fields.h"
#include "ultraspeed/v1/inference.pb.h"

namespace ultraspeed::router {

// `response_format`: text, json_object or json_schema.
void ReadResponseFormat(RequestFields& fields, v1::GenerateOptions* options);
// `text.format`: the same, but a schema lies beside its type.
void ReadTextFormat(RequestFields& fields, v1::GenerateOptions* options);
// `output_config.format` or `output_format`, json_schema only: the path of which it was.
std::string ReadOutputConfig(RequestFields& fields, v1::GenerateOptions* options);

}  // namespace ultraspeed::router
