#include "worker/sha256.h"

#include "absl/strings/escaping.h"
#include "kernels/check.h"

namespace ultraspeed::worker {

Sha256::Sha256() : context_(EVP_MD_CTX_new(), &EVP_MD_CTX_free) {
  KERNELS_CHECK(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr), ==, 1);
}

void Sha256::Add(absl::string_view bytes) {
  KERNELS_CHECK(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()), ==, 1);
}

std::string Sha256::Hex() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int num_bytes = 0;
  KERNELS_CHECK(EVP_DigestFinal_ex(context_.get(), digest, &num_bytes), ==, 1);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest), num_bytes));
}

std::string Sha256Hex(absl::string_view bytes) {
  Sha256 hash;
  hash.Add(bytes);
  return hash.Hex();
}

}  // namespace ultraspeed::worker
