// A zip archive whose entries are stored, not compressed: the container of torch.save.
//
// Caller: mask_embedding.cc. Every offset is checked against the archive, every entry against its
// CRC-32.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace ultraspeed::worker {

// Entry name -> its bytes, views into `archive`. INVALID_ARGUMENT starts with `origin`.
absl::StatusOr<std::map<std::string, std::string_view>> ReadStoredZip(const std::string& origin,
                                                                      std::string_view archive);

uint32_t Crc32(std::string_view bytes);

}  // namespace ultraspeed::worker
