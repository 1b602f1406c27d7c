// Answers in OpenAI's shapes: chat completions and text completions, streamed or whole. Pure.
//
// Source: OpenAI API reference, "The chat completion object", "The chat completion chunk object",
// "The completion object". Beyond it: message.reasoning_content (what stood in <think>), and an
// object `ultraspeed` with the answer's speed, what it is billed as, and its seed, in the last
// chunk with a choice or in the body. One event carries what one chunk of the gRPC API carried,
// which may be several tokens.
#pragma once

#include <memory>

#include "router/http/translation.h"

namespace ultraspeed::router {

struct OpenAiReplyOptions {
  bool include_usage = false;     // stream_options: a last chunk with usage and without choices
  bool continuous_usage = false;  // stream_options: usage so far in every chunk
  // service_tier is told as "standard" and "ultraspeed", because the caller asked by these names;
  // else by OpenAI's, "default" and "priority", which its clients may know alone.
  bool own_tier_names = false;
};

std::unique_ptr<ReplyWriter> NewChatCompletionWriter(const OpenAiReplyOptions& options,
                                                     ReplyContext context);
std::unique_ptr<ReplyWriter> NewCompletionWriter(const OpenAiReplyOptions& options,
                                                 ReplyContext context);

}  // namespace ultraspeed::router
