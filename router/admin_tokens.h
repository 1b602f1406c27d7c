// Who may operate: the admin token file, one operator a line,
//   <name> <token>
// blank lines and lines that begin with # are ignored. Names go into the audit log; tokens are at
// least 32 characters and are kept as SHA-256 only. Read once, at start.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ultraspeed::router {

// Immutable. Thread contract: any.
class AdminTokens {
 public:
  AdminTokens() = default;  // nobody
  // FAILED_PRECONDITION: the file is missing or holds no operator; INVALID_ARGUMENT names the line
  // and the fault, never its text.
  static absl::StatusOr<AdminTokens> Read(const std::string& path);

  // The operator's name. UNAUTHENTICATED with one fixed message. Takes the same time whichever
  // token it is, and whether there is one.
  absl::StatusOr<std::string> Authenticate(absl::string_view token) const;

 private:
  struct Operator {
    std::string name;
    std::array<uint8_t, 32> digest;
  };

  std::vector<Operator> operators_;
};

}  // namespace ultraspeed::router
