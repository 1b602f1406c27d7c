// A checkpoint folder against a list of sha256 sums, as sha256sum writes it: "<64 hex>  <file>".
//
// For files that came over a network; at a terabyte it takes minutes, so it is asked for by flag.
// Part of the serving build, which links OpenSSL. Thread: any; starts threads of its own while it
// runs.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ultraspeed::worker {

// File name relative to the folder -> lower-case hexadecimal sum. INVALID_ARGUMENT names `origin`
// and the line.
absl::StatusOr<std::map<std::string, std::string>> ParseManifest(const std::string& origin,
                                                                 absl::string_view text);

// OK if every .safetensors, .json and .pt file that loading reads (the folder's own and dflash/) is
// in the manifest with its sum, and every file of the manifest is there. INVALID_ARGUMENT or
// NOT_FOUND names the file. `progress(bytes done, bytes total)` may be null; calls do not overlap.
absl::Status CheckManifest(const std::string& folder, const std::string& manifest_path,
                           int num_threads, const std::function<void(int64_t, int64_t)>& progress);

}  // namespace ultraspeed::worker
