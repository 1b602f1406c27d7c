#include "router/http/translation.h"

#include "absl/strings/str_cat.h"

namespace ultraspeed::router {

v1::GenerateOptions* TranslatedCall::options() {
  return std::visit([](auto& call) { return call.mutable_options(); }, request);
}

std::string SystemFingerprint(const ModelDetails& details) {
  return absl::StrCat("fp_", details.weights_sha256.substr(0, 10));
}

}  // namespace ultraspeed::router
