#include "worker/terminal_records.h"

namespace ultraspeed::worker {

void TerminalRecords::Begin(const std::string& request_id) {
  absl::MutexLock lock(&mutex_);
  ++live_[request_id];
}

void TerminalRecords::Withdraw(const std::string& request_id) {
  absl::MutexLock lock(&mutex_);
  WithdrawLocked(request_id);
}

void TerminalRecords::WithdrawLocked(const std::string& request_id) {
  const auto found = live_.find(request_id);
  if (found != live_.end() && --found->second == 0) live_.erase(found);
}

void TerminalRecords::End(const std::string& request_id, const TerminalRecord& record) {
  absl::MutexLock lock(&mutex_);
  WithdrawLocked(request_id);
  if (!ended_.insert_or_assign(request_id, record).second) return;
  ids_.push_back(request_id);
  if (ids_.size() <= capacity_) return;
  ended_.erase(ids_.front());
  ids_.pop_front();
}

bool TerminalRecords::IsLive(absl::string_view request_id) const {
  absl::MutexLock lock(&mutex_);
  return live_.contains(request_id);
}

std::optional<TerminalRecord> TerminalRecords::Find(absl::string_view request_id) const {
  absl::MutexLock lock(&mutex_);
  const auto found = ended_.find(request_id);
  if (found == ended_.end()) return std::nullopt;
  return found->second;
}

}  // namespace ultraspeed::worker
