#include "router/outbox_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

constexpr size_t kReadBytes = 64u << 10;
constexpr int64_t kCheckWrites = 1000;  // that Open reads at a time

absl::Status FileError(const std::string& path, absl::string_view what) {
  return absl::UnavailableError(absl::StrCat("outbox=", path, ": ", what, ": ", strerror(errno)));
}

json::object ToJson(const LedgerOpening& opening) {
  return {{"write", "open"},
          {"request_id", opening.request_id},
          {"tenant_id", opening.tenant_id},
          {"key_id", opening.key_id},
          {"model", opening.model},
          {"tier", static_cast<int>(opening.tier)},
          {"price_version", opening.price_version},
          {"reserved_tokens", opening.reserved_tokens},
          {"reserved_nanodollars", opening.reserved_nanodollars},
          {"router_id", opening.router_id},
          {"opened_ms", absl::ToUnixMillis(opening.opened)}};
}

json::object ToJson(const LedgerClosing& closing) {
  return {{"write", "close"},
          {"request_id", closing.request_id},
          {"worker", closing.worker},
          {"prompt_tokens", closing.tokens.prompt},
          {"cached_tokens", closing.tokens.cached},
          {"completion_tokens", closing.tokens.completion},
          {"reasoning_tokens", closing.reasoning_tokens},
          {"draft_rounds", closing.draft_rounds},
          {"decode_us", closing.decode_us},
          {"finish_reason", closing.finish_reason},
          {"billed_tier", static_cast<int>(closing.billed_tier)},
          {"billed_reason", closing.billed_reason},
          {"price_version", closing.price_version},
          {"cost_nanodollars", closing.cost_nanodollars},
          {"closed_ms", absl::ToUnixMillis(closing.closed)}};
}

// Throws what Boost.JSON throws when a field is missing or of another type.
std::string Text(const json::value& value, const char* key) {
  return std::string(value.at(key).as_string());
}
int64_t Number(const json::value& value, const char* key) { return value.at(key).as_int64(); }
Tier TierOf(const json::value& value, const char* key) {
  return Number(value, key) == static_cast<int>(Tier::kUltraspeed) ? Tier::kUltraspeed
                                                                   : Tier::kStandard;
}
absl::Time TimeOf(const json::value& value, const char* key) {
  return absl::FromUnixMillis(Number(value, key));
}

LedgerWrite FromJson(const json::value& value) {
  if (Text(value, "write") == "open") {
    return LedgerOpening{.request_id = Text(value, "request_id"),
                         .tenant_id = Text(value, "tenant_id"),
                         .key_id = Text(value, "key_id"),
                         .model = Text(value, "model"),
                         .tier = TierOf(value, "tier"),
                         .price_version = Number(value, "price_version"),
                         .reserved_tokens = Number(value, "reserved_tokens"),
                         .reserved_nanodollars = Number(value, "reserved_nanodollars"),
                         .router_id = Text(value, "router_id"),
                         .opened = TimeOf(value, "opened_ms")};
  }
  return LedgerClosing{.request_id = Text(value, "request_id"),
                       .worker = Text(value, "worker"),
                       .tokens = {.prompt = Number(value, "prompt_tokens"),
                                  .cached = Number(value, "cached_tokens"),
                                  .completion = Number(value, "completion_tokens")},
                       .reasoning_tokens = Number(value, "reasoning_tokens"),
                       .draft_rounds = Number(value, "draft_rounds"),
                       .decode_us = Number(value, "decode_us"),
                       .finish_reason = Text(value, "finish_reason"),
                       .billed_tier = TierOf(value, "billed_tier"),
                       .billed_reason = Text(value, "billed_reason"),
                       .price_version = Number(value, "price_version"),
                       .cost_nanodollars = Number(value, "cost_nanodollars"),
                       .closed = TimeOf(value, "closed_ms")};
}

}  // namespace

absl::StatusOr<std::unique_ptr<OutboxFile>> OutboxFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return FileError(path, "open");
  std::unique_ptr<OutboxFile> file(new OutboxFile(path, fd));
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("outbox=", path, ": another process has it; every router needs its own"));
  }
  RETURN_IF_ERROR(file->CountLines());
  for (int64_t offset_bytes = 0; offset_bytes < file->end_bytes_;) {
    RETURN_IF_ERROR(file->Read(kCheckWrites, &offset_bytes).status());
  }
  return file;
}

OutboxFile::~OutboxFile() { close(fd_); }

absl::Status OutboxFile::CountLines() {
  std::string buffer(kReadBytes, '\0');
  int64_t offset = 0;
  for (;;) {
    const ssize_t num_read = pread(fd_, buffer.data(), buffer.size(), offset);
    if (num_read < 0) return FileError(path_, "read");
    if (num_read == 0) break;
    for (ssize_t i = 0; i < num_read; ++i) {
      if (buffer[static_cast<size_t>(i)] != '\n') continue;
      ++num_writes_;
      end_bytes_ = offset + i + 1;
    }
    offset += num_read;
  }
  if (ftruncate(fd_, end_bytes_) != 0) return FileError(path_, "truncate");
  return absl::OkStatus();
}

absl::Status OutboxFile::Append(absl::Span<const LedgerWrite> writes) {
  std::string lines;
  for (const LedgerWrite& write : writes) {
    std::visit(
        [&](const auto& record) { absl::StrAppend(&lines, json::serialize(ToJson(record)), "\n"); },
        write);
  }
  size_t num_written = 0;
  while (num_written < lines.size()) {
    const ssize_t result =
        pwrite(fd_, lines.data() + num_written, lines.size() - num_written,
               static_cast<off_t>(end_bytes_ + static_cast<int64_t>(num_written)));
    if (result < 0 && errno == EINTR) continue;
    if (result <= 0) return FileError(path_, "write");
    num_written += static_cast<size_t>(result);
  }
  if (fdatasync(fd_) != 0) return FileError(path_, "sync");
  end_bytes_ += static_cast<int64_t>(lines.size());
  num_writes_ += static_cast<int64_t>(writes.size());
  return absl::OkStatus();
}

absl::StatusOr<std::vector<LedgerWrite>> OutboxFile::Read(int64_t num_max,
                                                          int64_t* offset_bytes) const {
  std::vector<LedgerWrite> writes;
  std::string text;       // from *offset_bytes on
  size_t num_parsed = 0;  // bytes of it
  const auto is_done = [&] { return static_cast<int64_t>(writes.size()) == num_max; };
  while (!is_done()) {
    const int64_t offset = *offset_bytes + static_cast<int64_t>(text.size());
    if (offset >= end_bytes_) break;
    std::string buffer(static_cast<size_t>(std::min<int64_t>(kReadBytes, end_bytes_ - offset)), 0);
    const ssize_t num_read = pread(fd_, buffer.data(), buffer.size(), offset);
    if (num_read <= 0) return FileError(path_, "read");
    text.append(buffer, 0, static_cast<size_t>(num_read));
    for (size_t end; !is_done() && (end = text.find('\n', num_parsed)) != std::string::npos;) {
      try {
        writes.push_back(
            FromJson(json::parse(json::string_view(text.data() + num_parsed, end - num_parsed))));
      } catch (const std::exception& error) {
        return absl::DataLossError(absl::StrCat("outbox=", path_, ": no record at byte ",
                                                *offset_bytes + static_cast<int64_t>(num_parsed),
                                                ": ", error.what()));
      }
      num_parsed = end + 1;
    }
  }
  *offset_bytes += static_cast<int64_t>(num_parsed);
  return writes;
}

absl::StatusOr<std::vector<LedgerWrite>> OutboxFile::Front(int64_t num_max) const {
  int64_t offset_bytes = front_bytes_;
  return Read(num_max, &offset_bytes);
}

absl::Status OutboxFile::Pop(int64_t num_writes) {
  num_writes_ -= num_writes;
  if (num_writes_ > 0) return Read(num_writes, &front_bytes_).status();
  front_bytes_ = end_bytes_ = 0;
  if (ftruncate(fd_, 0) != 0) return FileError(path_, "truncate");
  return absl::OkStatus();
}

}  // namespace ultraspeed::router
