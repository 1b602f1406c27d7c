// Closed ledger entries as a file: CSV (RFC 4180) or a JSON array of objects with the same names.
// Money stays a whole number of nano-dollars, so the file's sum is the ledger's sum.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "router/ledger.h"

namespace ultraspeed::router {

enum class ExportFormat : uint8_t { kCsv, kJson };

// The text of a file, in pieces: Head, a Row for every entry, Tail. Thread contract: one thread.
class LedgerExport {
 public:
  explicit LedgerExport(ExportFormat format) : format_(format) {}

  std::string Head() const;
  // REQUIRES: entry.closing.
  std::string Row(const LedgerEntry& entry);
  std::string Tail() const;

 private:
  const ExportFormat format_;
  bool has_rows_ = false;
};

}  // namespace ultraspeed::router
