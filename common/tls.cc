#include "common/tls.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace ultraspeed {
namespace {

absl::StatusOr<std::string> ReadPem(const std::string& path, absl::string_view what) {
  ASSIGN_OR_RETURN(std::string text, ReadFile(path, limits::kTlsFileBytesMax, what));
  if (!absl::StrContains(text, "-----BEGIN ")) {
    return absl::InvalidArgumentError(absl::StrCat(what, "=", path, ": not a PEM file"));
  }
  return text;
}

absl::Status CheckPair(const TlsOptions& options) {
  if (options.cert_file.empty() == options.key_file.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("tls-cert and tls-key must be given together; only ",
                   options.cert_file.empty() ? "tls-key" : "tls-cert", " is"));
}

absl::Status RefuseCleartext(absl::string_view verb, absl::string_view address) {
  return absl::FailedPreconditionError(
      absl::StrCat("refusing to ", verb, " ", address,
                   " without TLS: it is not loopback. Give TLS files, or --insecure explicitly"));
}

// An IPv4 address of 127.0.0.0/8. A name that only begins with "127." is not one.
bool IsLoopbackIpv4(absl::string_view host) {
  const std::vector<absl::string_view> parts = absl::StrSplit(host, '.');
  if (parts.size() != 4 || parts[0] != "127") return false;
  for (const absl::string_view part : parts) {
    int value;
    if (!absl::SimpleAtoi(part, &value) || value < 0 || value > 255) return false;
  }
  return true;
}

}  // namespace

void AddTlsFlags(FlagTable& flags, const std::string& prefix, const std::string& what,
                 TlsOptions* options) {
  flags.String(prefix + "tls-cert", &options->cert_file, "file",
               absl::StrCat("PEM certificate chain for ", what));
  flags.String(prefix + "tls-key", &options->key_file, "file",
               absl::StrCat("PEM private key for ", what));
  flags.String(
      prefix + "tls-ca", &options->ca_file, "file",
      absl::StrCat("PEM certificate authorities that the peer's certificate must chain to, for ",
                   what));
  flags.Bool(prefix + "insecure", &options->insecure,
             absl::StrCat("Allow ", what, " in the clear off loopback"));
}

absl::StatusOr<ServerPems> ReadServerPems(const TlsOptions& options, const std::string& address) {
  RETURN_IF_ERROR(CheckPair(options));
  ServerPems pems;
  if (options.cert_file.empty()) {
    if (!options.ca_file.empty())
      return absl::InvalidArgumentError("tls-ca needs tls-cert and tls-key");
    if (!IsLoopback(address) && !options.insecure) return RefuseCleartext("listen on", address);
    return pems;
  }
  ASSIGN_OR_RETURN(pems.cert, ReadPem(options.cert_file, "tls-cert"));
  ASSIGN_OR_RETURN(pems.key, ReadPem(options.key_file, "tls-key"));
  if (!options.ca_file.empty()) {
    ASSIGN_OR_RETURN(pems.ca, ReadPem(options.ca_file, "tls-ca"));
  }
  return pems;
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> CreateServerCredentials(
    const TlsOptions& options, const std::string& address) {
  ASSIGN_OR_RETURN(ServerPems pems, ReadServerPems(options, address));
  if (pems.cert.empty()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions ssl(
      pems.ca.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                      : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  ssl.pem_root_certs = std::move(pems.ca);
  ssl.pem_key_cert_pairs.push_back({std::move(pems.key), std::move(pems.cert)});
  return grpc::SslServerCredentials(ssl);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> CreateChannelCredentials(
    const TlsOptions& options, const std::string& target) {
  RETURN_IF_ERROR(CheckPair(options));
  if (options.ca_file.empty() && options.cert_file.empty()) {
    if (!IsLoopback(target) && !options.insecure) return RefuseCleartext("dial", target);
    return grpc::InsecureChannelCredentials();
  }
  grpc::SslCredentialsOptions ssl;
  if (!options.ca_file.empty()) {
    ASSIGN_OR_RETURN(ssl.pem_root_certs, ReadPem(options.ca_file, "tls-ca"));
  }
  if (!options.cert_file.empty()) {
    ASSIGN_OR_RETURN(ssl.pem_cert_chain, ReadPem(options.cert_file, "tls-cert"));
    ASSIGN_OR_RETURN(ssl.pem_private_key, ReadPem(options.key_file, "tls-key"));
  }
  return grpc::SslCredentials(ssl);
}

bool IsLoopback(absl::string_view address) {
  if (absl::StartsWith(address, "unix:")) return true;
  for (const absl::string_view scheme : {"dns:///", "ipv4:", "ipv6:"}) {
    if (absl::StartsWith(address, scheme)) address.remove_prefix(scheme.size());
  }
  if (absl::StartsWith(address, "[::1]")) return true;
  const absl::string_view host = address.substr(0, address.rfind(':'));
  return host == "localhost" || IsLoopbackIpv4(host);
}

}  // namespace ultraspeed
