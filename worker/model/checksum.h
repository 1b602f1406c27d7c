// XXH64, the published 64-bit hash: tells damage and change apart from sameness at memory speed. No
// defence against anyone who wants a collision.
//
// Thread: any; pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ultraspeed::worker {

uint64_t Checksum(const void* data, size_t bytes, uint64_t seed = 0);
inline uint64_t Checksum(std::string_view bytes) { return Checksum(bytes.data(), bytes.size()); }

std::string ChecksumName(uint64_t checksum);  // 16 hexadecimal digits

}  // namespace ultraspeed::worker
