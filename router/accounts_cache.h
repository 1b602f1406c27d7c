// The store's accounts and prices, held in memory by every router. Asks the store for its version
// twice a second and takes over what changed, so a revocation holds everywhere within a second and
// no request ever waits for the database. A key that is not here does not exist: an attacker's
// guesses cost the store nothing.
//
// While the store is away, what was last known stays in force for Options::stale_max, then every
// caller is refused with UNAVAILABLE.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "router/api_key.h"
#include "router/authenticator.h"
#include "router/pricing.h"
#include "router/store.h"

namespace ultraspeed::router {

// Thread contract: every method may be called from any thread; Authenticate and prices() never
// block on the store.
class AccountsCache : public Authenticator {
 public:
  struct Options {
    Store* store = nullptr;  // must outlive the cache
    std::string pepper;      // at least kPepperBytesMin bytes
    const Clock* clock = &RealClock();
    absl::Duration poll_interval = absl::Milliseconds(500);  // zero: nobody polls but the caller
    absl::Duration stale_max = absl::Minutes(15);

    absl::Status Validate() const;
  };

  // Reads everything once; an error is the store's.
  static absl::StatusOr<std::unique_ptr<AccountsCache>> Create(Options options);
  ~AccountsCache() override;

  absl::StatusOr<AuthenticatedTenant> Authenticate(absl::string_view key) const override;
  // Never null.
  std::shared_ptr<const PriceTable> prices() const;
  // Takes over what changed since the last time. On an error the old state stays.
  absl::Status Refresh();

 private:
  struct CachedTenant {
    TenantState state = TenantState::kActive;
    std::shared_ptr<const TenantTerms> terms;
  };
  struct CachedKey {
    ApiKeyDigest digest{};
    std::string tenant_id;
    absl::Time end;  // the key is good before it
  };

  explicit AccountsCache(Options options);
  void Poll();
  void Apply(AccountChanges changes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  absl::Mutex refresh_mutex_;  // one Refresh at a time; held over the store's calls
  mutable absl::Mutex mutex_ ABSL_ACQUIRED_AFTER(refresh_mutex_);
  int64_t version_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Duration refreshed_ ABSL_GUARDED_BY(mutex_);  // monotonic
  absl::flat_hash_map<std::string, CachedTenant> tenants_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, CachedKey> keys_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const PriceTable> prices_ ABSL_GUARDED_BY(mutex_);
  absl::Notification closing_;
  std::thread poll_thread_;
};

}  // namespace ultraspeed::router
