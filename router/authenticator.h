// Who is calling: the question that the services ask at the head of every request. Two answers
// exist: ApiKeys (auth.h, a file of hashes) and AccountsCache (accounts_cache.h, the accounts
// store).
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "router/accounts.h"

namespace ultraspeed::router {

struct AuthenticatedTenant {
  std::string tenant;  // id
  std::string key_id;
  std::shared_ptr<const TenantTerms> terms = UnrestrictedTerms();  // never null; cheap to copy
};

// Thread contract: any thread, and never blocks on a file or a database.
class Authenticator {
 public:
  virtual ~Authenticator() = default;
  // UNAUTHENTICATED, with one fixed message for every reason; PERMISSION_DENIED: the key is good
  // and its tenant is suspended; UNAVAILABLE: what is known is too old to rely on.
  virtual absl::StatusOr<AuthenticatedTenant> Authenticate(absl::string_view key) const = 0;
};

}  // namespace ultraspeed::router
