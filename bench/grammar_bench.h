// What holding an output to a format costs the host: compiling the format, and the masks of the
// tokens that it allows, beside the round that they delay.
//
// Caller: bench_main.cc. Single-threaded.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace ultraspeed::bench {

struct GrammarBenchOptions {
  std::string model_folder = {};
  std::string schema_file = {};  // empty: an example of ten members
  int texts = 200;               // of each grammar
  int tokens_max = 256;          // of a text
  uint64_t seed = 1;
};

// Random texts under "schema", "json_object", any JSON object, "strict_tools", a call of one of two
// tools, and "strict_tools_128", of one of 128. Every text has a
// constraint of its own, so it meets what the first request with a format meets, and then goes the
// same way again.
absl::StatusOr<boost::json::object> MeasureGrammar(const GrammarBenchOptions& options);

}  // namespace ultraspeed::bench
