// What lies between the HTTP shapes and the gRPC API: a body that was translated into a call, and
// the writer of the call's answer. openai.h and anthropic.h make them, the session uses them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <variant>

#include "router/http/http_error.h"
#include "router/tokenizer.h"
#include "ultraspeed/v1/inference.pb.h"

namespace ultraspeed::router {

// Writes one answer in one API's shape. Thread contract: one thread at a time.
class ReplyWriter {
 public:
  virtual ~ReplyWriter() = default;

  // For streams: what `chunk` says, as whole SSE events (WHATWG HTML, "Server-sent events"); empty
  // if it says nothing yet. The last chunk's end with the API's own end of a stream.
  virtual std::string Events(const v1::GenerateChunk& chunk) = 0;
  // Keeps an idle stream alive; a client's parser passes over it.
  virtual std::string Ping() const = 0;

  // For answers in one piece: takes every chunk, then gives the body.
  virtual void Collect(const v1::GenerateChunk& chunk) = 0;
  virtual std::string Body() = 0;
};

struct TranslatedCall {
  std::variant<v1::GenerateRequest, v1::ChatRequest> request;
  bool stream = false;
  FieldNames names;
  std::unique_ptr<ReplyWriter> reply;

  v1::GenerateOptions* options();
};

// What the shapes tell of a model and the gRPC API's chunks do not.
struct ModelDetails {
  std::string weights_sha256;
  std::shared_ptr<const Tokenizer> tokenizer;  // null: the model went away meanwhile
};
using FindModelDetails = std::function<ModelDetails(const std::string& model)>;

struct ReplyContext {
  int64_t created_unix_s = 0;
  FindModelDetails find_model;
};

// "fp_" and the first ten digits of the weights' sha256.
std::string SystemFingerprint(const ModelDetails& details);

}  // namespace ultraspeed::router
