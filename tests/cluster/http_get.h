// One HTTP/1.0 GET on loopback, answered in one piece: for /metrics of a process under test.
#pragma once

#include <string>

namespace ultraspeed::testing {

// The body, or "" if nobody answers.
std::string HttpGet(int port, const std::string& path);

}  // namespace ultraspeed::testing
