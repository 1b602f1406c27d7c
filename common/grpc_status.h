// The only mapping between absl::Status and grpc::Status. Codes are numerically equal by design of
// both; messages travel as they are.
#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace ultraspeed {

grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);

}  // namespace ultraspeed
