// Bytes of a call -> request message, with an INVALID_ARGUMENT that names the field. gRPC's own
// decoder answers a bare UNIMPLEMENTED when a string is not UTF-8, so the service takes raw bytes
// and decodes here. Called by InferenceService on gRPC threads; pure.
#pragma once

#include "absl/status/status.h"
#include "google/protobuf/message.h"
#include "grpcpp/support/byte_buffer.h"

namespace ultraspeed::router {

// Fills *message, or says which string field holds invalid UTF-8 (`prompt`, `messages[1].content`),
// or that the bytes are no message of this type at all.
absl::Status DecodeRequest(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);

}  // namespace ultraspeed::router
