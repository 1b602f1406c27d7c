// Answers in the shape of OpenAI's Responses, streamed or whole. Pure.
//
// Source: OpenAI API reference, "The response object" and "Streaming events". Output items come in
// the order reasoning, message, function calls, as the model wrote them; of each the stream tells
// that it was added, its pieces, and the whole of it. Beyond it: an object `ultraspeed` as in
// openai_reply.h in the finished response. Thoughts are told in full (reasoning_text), not as a
// summary.
#pragma once

#include <memory>
#include <string>

#include "router/http/translation.h"

namespace ultraspeed::router {

// `echo`: text of a JSON object with what the response repeats of its request. `own_tier_names`: as
// in OpenAiReplyOptions.
std::unique_ptr<ReplyWriter> NewResponseWriter(const std::string& echo, bool own_tier_names,
                                               ReplyContext context);

}  // namespace ultraspeed::router
