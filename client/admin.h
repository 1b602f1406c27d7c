// `ultraspeed admin`: tenants, keys, prices, usage, audit, over the router's admin endpoint.
// Synchronous, one thread.
#pragma once

namespace ultraspeed::client {

// argv[1] is "admin". Returns the exit status; messages go to standard error.
int RunAdmin(int argc, const char* const* argv);

}  // namespace ultraspeed::client
