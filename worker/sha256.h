// SHA-256 of bytes that come in pieces. Part of the serving build, which links OpenSSL.
//
// Thread: one at a time.
#pragma once

#include <openssl/evp.h>

#include <memory>
#include <string>

#include "absl/strings/string_view.h"

namespace ultraspeed::worker {

class Sha256 {
 public:
  Sha256();
  void Add(absl::string_view bytes);
  // Lower-case hexadecimal. REQUIRES: called once, last.
  std::string Hex();

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

std::string Sha256Hex(absl::string_view bytes);

}  // namespace ultraspeed::worker
