#include "worker/model/stored_zip.h"

#include <array>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace ultraspeed::worker {
namespace {

constexpr size_t kEndBytes = 22;      // end of central directory
constexpr size_t kCentralBytes = 46;  // one central entry without its name
constexpr size_t kLocalBytes = 30;    // one local header without its name
constexpr size_t kCommentBytesMax = 65535;
constexpr size_t kEntriesMax = 64;

template <typename T>
T Load(std::string_view bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

std::array<uint32_t, 256> CrcTable() {
  std::array<uint32_t, 256> table;
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) ? 0xEDB88320u : 0);
    table[i] = value;
  }
  return table;
}

}  // namespace

uint32_t Crc32(std::string_view bytes) {
  static const std::array<uint32_t, 256> kTable = CrcTable();
  uint32_t crc = ~0u;
  for (const char c : bytes) crc = kTable[(crc ^ static_cast<uint8_t>(c)) & 255] ^ (crc >> 8);
  return ~crc;
}

absl::StatusOr<std::map<std::string, std::string_view>> ReadStoredZip(const std::string& origin,
                                                                      std::string_view archive) {
  const auto damaged = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": ", what));
  };
  if (archive.size() < kEndBytes) return damaged("too short for a zip archive");
  size_t end = archive.size() - kEndBytes;
  const size_t end_min = end > kCommentBytesMax ? end - kCommentBytesMax : 0;
  while (Load<uint32_t>(archive, end) != 0x06054b50) {
    if (end == end_min) return damaged("no end of a zip archive; is the file truncated?");
    --end;
  }
  const size_t num_entries = Load<uint16_t>(archive, end + 10);
  size_t central = Load<uint32_t>(archive, end + 16);
  if (num_entries == 0 || num_entries > kEntriesMax) {
    return damaged(absl::StrCat("zip archive has ", num_entries, " entries; 1 to ", kEntriesMax));
  }

  std::map<std::string, std::string_view> entries;
  for (size_t i = 0; i < num_entries; ++i) {
    if (central > end || end - central < kCentralBytes ||
        Load<uint32_t>(archive, central) != 0x02014b50) {
      return damaged("zip directory is damaged");
    }
    const uint16_t flags = Load<uint16_t>(archive, central + 8);
    const uint16_t method = Load<uint16_t>(archive, central + 10);
    const uint32_t crc = Load<uint32_t>(archive, central + 16);
    const size_t stored_bytes = Load<uint32_t>(archive, central + 20);
    const size_t bytes = Load<uint32_t>(archive, central + 24);
    const size_t name_bytes = Load<uint16_t>(archive, central + 28);
    const size_t tail_bytes =
        size_t{Load<uint16_t>(archive, central + 30)} + Load<uint16_t>(archive, central + 32);
    const size_t local = Load<uint32_t>(archive, central + 42);
    if (end - central - kCentralBytes < name_bytes + tail_bytes) {
      return damaged("zip directory is damaged");
    }
    const std::string name(archive.substr(central + kCentralBytes, name_bytes));
    central += kCentralBytes + name_bytes + tail_bytes;

    if (method != 0 || bytes != stored_bytes || (flags & 1) != 0) {
      return damaged(absl::StrCat("entry ", name, ": must be stored, not compressed or encrypted"));
    }
    if (local > archive.size() || archive.size() - local < kLocalBytes ||
        Load<uint32_t>(archive, local) != 0x04034b50) {
      return damaged(absl::StrCat("entry ", name, ": its header is damaged"));
    }
    const size_t data = local + kLocalBytes + Load<uint16_t>(archive, local + 26) +
                        Load<uint16_t>(archive, local + 28);
    if (data > archive.size() || archive.size() - data < bytes) {
      return damaged(absl::StrCat("entry ", name, ": ends past the file"));
    }
    const std::string_view content = archive.substr(data, bytes);
    if (Crc32(content) != crc) return damaged(absl::StrCat("entry ", name, ": wrong CRC-32"));
    if (!entries.emplace(name, content).second) {
      return damaged(absl::StrCat("entry ", name, ": appears twice"));
    }
  }
  return entries;
}

}  // namespace ultraspeed::worker
