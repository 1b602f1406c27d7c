// Answers in Anthropic's shape: a message, streamed or whole. Pure.
//
// Source: Anthropic API reference, "Create a Message" and "Streaming messages". A stream is
// message_start, then for each block (thinking first, if the model thinks; text; calls of tools)
// content_block_start,
// content_block_delta.., content_block_stop, then message_delta and message_stop. Beyond it: an
// object `ultraspeed` as in openai_reply.h, in message_delta or in the body. A thinking block has
// an empty signature: what a client sends back is taken as it is.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "router/http/translation.h"

namespace ultraspeed::router {

// `stop_sequences`: of the request; an end at any other text is an end of turn.
std::unique_ptr<ReplyWriter> NewMessageWriter(std::vector<std::string> stop_sequences);

}  // namespace ultraspeed::router
