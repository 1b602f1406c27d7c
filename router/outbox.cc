#include "router/outbox.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/time/clock.h"
#include "common/logging.h"
#include "common/status_macros.h"

namespace ultraspeed::router {
namespace {

constexpr size_t kBatchWrites = 256;  // of one transaction

bool IsClosing(const LedgerWrite& write) { return std::holds_alternative<LedgerClosing>(write); }

const std::string& RequestIdOf(const LedgerWrite& write) {
  return std::visit([](const auto& record) -> const std::string& { return record.request_id; },
                    write);
}

void LogRefused(const std::string& request_id, const absl::Status& status) {
  Log(LogLevel::kError, "router.ledger_refused",
      {{"request_id", request_id}, {"message", std::string(status.message())}});
}

}  // namespace

absl::StatusOr<std::unique_ptr<Outbox>> Outbox::Create(Options options) {
  std::unique_ptr<OutboxFile> file;
  if (!options.path.empty()) {
    ASSIGN_OR_RETURN(file, OutboxFile::Open(options.path));
  }
  return std::unique_ptr<Outbox>(new Outbox(std::move(options), std::move(file)));
}

Outbox::Outbox(Options options, std::unique_ptr<OutboxFile> file)
    : options_(std::move(options)), file_(std::move(file)) {
  if (file_ != nullptr && file_->size() > 0) {
    depth_ = file_->size();
    store_is_away_ = true;  // for all that is known: what waits in the file goes first
    Log(LogLevel::kInfo, "router.outbox_found", {{"writes", file_->size()}});
  }
  thread_ = std::thread([this] { Run(); });
}

Outbox::~Outbox() {
  {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
  }
  thread_.join();
}

void Outbox::Add(LedgerWrite write) {
  absl::MutexLock lock(&mutex_);
  depth_.fetch_add(1, std::memory_order_relaxed);
  added_.push_back(std::move(write));
}

bool Outbox::Flush(absl::Duration timeout) {
  const absl::Time end = absl::Now() + timeout;
  while (depth() > 0) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

void Outbox::Run() {
  absl::Time give_up = absl::InfiniteFuture();
  absl::Time next_try = absl::InfinitePast();
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      const auto has_work = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
        return !added_.empty() || closing_;
      };
      // While the store is away, `closing_` must not make this a busy loop.
      if (store_is_away() && !(closing_ && give_up == absl::InfiniteFuture())) {
        mutex_.AwaitWithDeadline(
            absl::Condition(
                +[](std::deque<LedgerWrite>* added) { return !added->empty(); }, &added_),
            std::min(next_try, give_up));
      } else {
        mutex_.Await(absl::Condition(&has_work));
      }
      std::move(added_.begin(), added_.end(), std::back_inserter(kept_));
      added_.clear();
      if (closing_ && give_up == absl::InfiniteFuture()) {
        give_up = absl::Now() + options_.close_timeout;
      }
    }
    if (!store_is_away() || absl::Now() >= next_try) {
      DeliverAll();
      next_try = absl::Now() + options_.retry_interval;
    }
    if (store_is_away() && file_ != nullptr && !kept_.empty()) {
      const absl::Status status = file_->Append(kept_);
      if (status.ok()) kept_.clear();
      if (!status.ok() && !file_failed_) {
        Log(LogLevel::kError, "router.outbox_file", {{"message", std::string(status.message())}});
      }
      file_failed_ = !status.ok();
    }
    if (give_up == absl::InfiniteFuture()) continue;
    if (depth() == 0) return;
    if (absl::Now() < give_up) continue;
    Log(kept_.empty() ? LogLevel::kWarning : LogLevel::kError, "router.outbox_left",
        {{"in_file", file_ == nullptr ? 0 : file_->size()},
         {"lost", static_cast<int64_t>(kept_.size())}});
    return;
  }
}

void Outbox::DeliverAll() {
  const absl::Status status = DeliverFile();
  const size_t num_written = status.ok() ? Deliver(kept_) : 0;
  kept_.erase(kept_.begin(), kept_.begin() + static_cast<std::ptrdiff_t>(num_written));
  const bool is_away = !status.ok() || !kept_.empty();
  if (store_is_away_.exchange(is_away) != is_away) {
    Log(is_away ? LogLevel::kWarning : LogLevel::kInfo,
        is_away ? "router.store_away" : "router.store_back", {{"writes_waiting", depth()}});
  }
}

absl::Status Outbox::DeliverFile() {
  while (file_ != nullptr && file_->size() > 0) {
    ASSIGN_OR_RETURN(const std::vector<LedgerWrite> writes, file_->Front(kBatchWrites));
    const size_t num_written = Deliver(writes);
    RETURN_IF_ERROR(file_->Pop(static_cast<int64_t>(num_written)));
    if (num_written < writes.size()) return absl::UnavailableError("the store is away");
  }
  return absl::OkStatus();
}

size_t Outbox::Deliver(absl::Span<const LedgerWrite> writes) {
  size_t num_written = 0;
  while (num_written < writes.size()) {
    const absl::Span<const LedgerWrite> rest = writes.subspan(num_written);
    if (IsClosing(rest[0])) {
      const auto run_end = std::find_if_not(
          rest.begin(), rest.begin() + std::min(rest.size(), kBatchWrites), IsClosing);
      const auto run_size = static_cast<size_t>(run_end - rest.begin());
      const size_t num_closed = DeliverClosings(rest.first(run_size));
      num_written += num_closed;
      if (num_closed < run_size) return num_written;
      continue;
    }
    // Its budget was none when it was admitted.
    const absl::Status status =
        options_.store->OpenEntry(std::get<LedgerOpening>(rest[0]), std::nullopt);
    if (absl::IsUnavailable(status)) return num_written;
    if (!status.ok() && !absl::IsAlreadyExists(status)) LogRefused(RequestIdOf(rest[0]), status);
    ++num_written;
    CountWritten(1);
  }
  return num_written;
}

size_t Outbox::DeliverClosings(absl::Span<const LedgerWrite> writes) {
  std::vector<LedgerClosing> closings;
  for (const LedgerWrite& write : writes) closings.push_back(std::get<LedgerClosing>(write));
  const auto outcomes = options_.store->CloseMany(closings);
  if (absl::IsUnavailable(outcomes.status())) return 0;
  if (outcomes.ok()) {
    for (size_t i = 0; i < closings.size(); ++i) Report(closings[i].request_id, (*outcomes)[i]);
    CountWritten(closings.size());
    return closings.size();
  }
  // One of them is bad; it must not hold up the others.
  for (size_t i = 0; i < closings.size(); ++i) {
    const auto outcome = options_.store->CloseEntry(closings[i]);
    if (absl::IsUnavailable(outcome.status())) return i;
    Report(closings[i].request_id, outcome);
    CountWritten(1);
  }
  return closings.size();
}

void Outbox::Report(const std::string& request_id, const absl::StatusOr<CloseOutcome>& outcome) {
  absl::string_view name = "refused";
  if (!outcome.ok()) {
    LogRefused(request_id, outcome.status());
  } else if (*outcome == CloseOutcome::kClosed) {
    name = "closed";
  } else {
    name = *outcome == CloseOutcome::kAlreadyClosed ? "already_closed" : "not_opened";
  }
  if (options_.metrics == nullptr) return;
  options_.metrics
      ->Counter("ultraspeed_router_ledger_closings_total",
                "Ledger entries closed by this router, by what the store said",
                {{"outcome", std::string(name)}})
      .Increment();
}

void Outbox::CountWritten(size_t num_writes) {
  depth_.fetch_sub(static_cast<int64_t>(num_writes), std::memory_order_relaxed);
}

}  // namespace ultraspeed::router
