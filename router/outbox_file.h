// Ledger writes that wait on local disk: one JSON object a line, appended and synced, read from the
// front, and the file emptied when all of them were taken. How far reading got is not kept over a
// restart: what is read twice is written twice, and the store takes every write only once.
//
// Used by Outbox, on its thread. Other processes are kept out by a lock on the file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "router/ledger.h"

namespace ultraspeed::router {

using LedgerWrite = std::variant<LedgerOpening, LedgerClosing>;

// Thread contract: one thread at a time.
class OutboxFile {
 public:
  // Created if missing. FAILED_PRECONDITION: another process has it. DATA_LOSS names the line that
  // is no record; a last line without its end is a write that never happened, and is cut off.
  static absl::StatusOr<std::unique_ptr<OutboxFile>> Open(const std::string& path);
  ~OutboxFile();
  OutboxFile(const OutboxFile&) = delete;
  OutboxFile& operator=(const OutboxFile&) = delete;

  // All are on disk when this returns OK; none counts otherwise.
  absl::Status Append(absl::Span<const LedgerWrite> writes);
  // The oldest, at most `num_max`.
  absl::StatusOr<std::vector<LedgerWrite>> Front(int64_t num_max) const;
  // Forgets the oldest `num_writes`. REQUIRES: at most size().
  absl::Status Pop(int64_t num_writes);
  int64_t size() const { return num_writes_; }

 private:
  OutboxFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  absl::Status CountLines();
  // At most `num_max` records from *offset_bytes on, which moves behind them.
  absl::StatusOr<std::vector<LedgerWrite>> Read(int64_t num_max, int64_t* offset_bytes) const;

  const std::string path_;
  const int fd_;
  int64_t front_bytes_ = 0;  // offset of the oldest
  int64_t end_bytes_ = 0;
  int64_t num_writes_ = 0;
};

}  // namespace ultraspeed::router
