#include "common/uuid.h"

#include <sys/random.h>

#include <array>
#include <cctype>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace ultraspeed {
namespace {

void FillRandom(uint8_t* bytes, size_t num_bytes) {
  size_t done = 0;
  while (done < num_bytes) {
    const ssize_t got = getrandom(bytes + done, num_bytes - done, 0);
    if (got > 0) {
      done += static_cast<size_t>(got);
    } else if (errno != EINTR) {
      std::perror("getrandom");
      std::abort();
    }
  }
}

bool IsDashPosition(size_t i) { return i == 8 || i == 13 || i == 18 || i == 23; }

}  // namespace

std::string NewUuidV7(const Clock& clock) {
  std::array<uint8_t, 16> bytes;
  FillRandom(bytes.data() + 6, 10);
  const uint64_t milliseconds = static_cast<uint64_t>(absl::ToUnixMillis(clock.Now()));
  for (int i = 0; i < 6; ++i) bytes[i] = static_cast<uint8_t>(milliseconds >> (40 - 8 * i));
  bytes[6] = (bytes[6] & 0x0F) | 0x70;  // version 7
  bytes[8] = (bytes[8] & 0x3F) | 0x80;  // variant
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(36);
  for (const uint8_t byte : bytes) {
    if (IsDashPosition(text.size())) text.push_back('-');
    text.push_back(kDigits[byte >> 4]);
    text.push_back(kDigits[byte & 15]);
  }
  return text;
}

bool IsUuid(absl::string_view text) {
  if (text.size() != 36) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (IsDashPosition(i) ? text[i] != '-'
                          : std::isxdigit(static_cast<unsigned char>(text[i])) == 0)
      return false;
  }
  return true;
}

}  // namespace ultraspeed
