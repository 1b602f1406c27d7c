// gRPC credentials of servers and channels from PEM files, and the rule that nothing listens or
// dials in the clear off loopback unless the operator says --insecure.
//
// With a CA file on a server, clients must show a certificate that it signed (mTLS).
#pragma once

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/config.h"

namespace ultraspeed {

struct TlsOptions {
  std::string cert_file = "";
  std::string key_file = "";
  std::string ca_file = "";
  bool insecure = false;
};

// --<prefix>tls-cert, --<prefix>tls-key, --<prefix>tls-ca, --<prefix>insecure. `what` completes
// "for ...".
void AddTlsFlags(FlagTable& flags, const std::string& prefix, const std::string& what,
                 TlsOptions* options);

// The PEM texts of a server's files; `cert` is empty for a server in the clear.
struct ServerPems {
  std::string cert;
  std::string key;
  std::string ca;  // empty: clients need no certificate
};
// `address` is where the server listens, "host:port". FAILED_PRECONDITION: it is off loopback,
// without TLS and without --insecure.
absl::StatusOr<ServerPems> ReadServerPems(const TlsOptions& options, const std::string& address);

// Of the same; errors are the same too.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> CreateServerCredentials(
    const TlsOptions& options, const std::string& address);

// `target` is what is dialled, "host:port" or a gRPC name such as "dns:///workers:50051".
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> CreateChannelCredentials(
    const TlsOptions& options, const std::string& target);

// localhost, 127.0.0.0/8, [::1] or unix:.
bool IsLoopback(absl::string_view address);

}  // namespace ultraspeed
