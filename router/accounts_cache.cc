#include "router/accounts_cache.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/logging.h"
#include "common/status_macros.h"

namespace ultraspeed::router {

absl::Status AccountsCache::Options::Validate() const {
  if (store == nullptr) return absl::InvalidArgumentError("accounts: store is missing");
  if (pepper.size() < kPepperBytesMin) {
    return absl::InvalidArgumentError(absl::StrCat(
        "API key pepper has ", pepper.size(), " bytes; at least ", kPepperBytesMin, " are needed"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<AccountsCache>> AccountsCache::Create(Options options) {
  RETURN_IF_ERROR(options.Validate());
  auto cache = std::unique_ptr<AccountsCache>(new AccountsCache(std::move(options)));
  RETURN_IF_ERROR(cache->Refresh());
  if (cache->options_.poll_interval > absl::ZeroDuration()) {
    cache->poll_thread_ = std::thread([raw = cache.get()] { raw->Poll(); });
  }
  return cache;
}

AccountsCache::AccountsCache(Options options)
    : options_(std::move(options)), prices_(std::make_shared<const PriceTable>()) {}

AccountsCache::~AccountsCache() {
  closing_.Notify();
  if (poll_thread_.joinable()) poll_thread_.join();
}

void AccountsCache::Poll() {
  bool was_ok = true;
  while (!closing_.WaitForNotificationWithTimeout(options_.poll_interval)) {
    const absl::Status status = Refresh();
    if (status.ok() != was_ok) {  // once when it goes and once when it comes back
      Log(status.ok() ? LogLevel::kInfo : LogLevel::kError, "router.accounts",
          {{"message", std::string(status.ok() ? "the store is back" : status.message())}});
    }
    was_ok = status.ok();
  }
}

absl::StatusOr<AuthenticatedTenant> AccountsCache::Authenticate(absl::string_view key) const {
  const absl::string_view key_id = ApiKeyIdOf(key);
  if (key_id.empty()) return InvalidApiKeyError();
  const ApiKeyDigest digest = DigestApiKey(key, options_.pepper);
  absl::ReaderMutexLock lock(&mutex_);
  if (options_.clock->Monotonic() - refreshed_ > options_.stale_max) {
    return absl::UnavailableError(absl::StrCat("accounts: the store has been away for more than ",
                                               absl::FormatDuration(options_.stale_max)));
  }
  const auto found = keys_.find(key_id);
  if (found == keys_.end() ||
      CRYPTO_memcmp(found->second.digest.data(), digest.data(), digest.size()) != 0 ||
      options_.clock->Now() >= found->second.end) {
    return InvalidApiKeyError();
  }
  const CachedTenant& tenant = tenants_.at(found->second.tenant_id);
  if (tenant.state == TenantState::kSuspended) {
    return absl::PermissionDeniedError(
        absl::StrCat("tenant ", found->second.tenant_id, " is suspended"));
  }
  return AuthenticatedTenant{
      .tenant = found->second.tenant_id, .key_id = found->first, .terms = tenant.terms};
}

std::shared_ptr<const PriceTable> AccountsCache::prices() const {
  absl::ReaderMutexLock lock(&mutex_);
  return prices_;
}

absl::Status AccountsCache::Refresh() {
  absl::MutexLock refresh_lock(&refresh_mutex_);
  // Before the store is asked: what it answers is at least as new as this.
  const absl::Duration now = options_.clock->Monotonic();
  int64_t known_version = 0;
  {
    absl::ReaderMutexLock lock(&mutex_);
    known_version = version_;
  }
  ASSIGN_OR_RETURN(const int64_t version, options_.store->AccountsVersion());
  if (version == known_version) {
    absl::MutexLock lock(&mutex_);
    refreshed_ = now;
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(AccountChanges changes, options_.store->ReadChanges(known_version));
  absl::MutexLock lock(&mutex_);
  Apply(std::move(changes));
  refreshed_ = now;
  return absl::OkStatus();
}

void AccountsCache::Apply(AccountChanges changes) {
  for (Tenant& tenant : changes.tenants) {
    tenants_[tenant.id] = {tenant.state,
                           std::make_shared<const TenantTerms>(std::move(tenant.terms))};
  }
  for (const ApiKeyRecord& record : changes.keys) {
    CachedKey& key = keys_[record.id];
    const std::string bytes = absl::HexStringToBytes(record.digest_hex);
    std::memcpy(key.digest.data(), bytes.data(), std::min(bytes.size(), key.digest.size()));
    key.tenant_id = record.tenant_id;
    // A revocation holds at once, whatever this machine's clock says.
    key.end =
        record.revoked ? absl::InfinitePast() : record.expires.value_or(absl::InfiniteFuture());
  }
  if (!changes.prices.empty()) {
    std::vector<Price> prices = prices_->prices();
    prices.insert(prices.end(), changes.prices.begin(), changes.prices.end());
    prices_ = std::make_shared<const PriceTable>(std::move(prices));
  }
  version_ = changes.version;
}

}  // namespace ultraspeed::router
