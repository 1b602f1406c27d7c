// One HTTP/1.1 GET on loopback: for /metrics of a process under test.
#pragma once

#include <string>

namespace ultraspeed::testing {

// The body, or "" if nobody answers.
std::string HttpGet(int port, const std::string& path);

}  // namespace ultraspeed::testing
