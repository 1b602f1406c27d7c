// A real PostgreSQL server of the test's own: its data in a temporary folder, reached through a
// Unix socket there, so it needs no port and disturbs no other server. As root it runs as user
// postgres, because PostgreSQL refuses root. Thread contract: one thread.
#pragma once

#include <memory>
#include <string>

#include "tests/cluster/process.h"
#include "tests/temporary_folder.h"

namespace ultraspeed::testing {

class PostgresServer {
 public:
  PostgresServer();
  // Stops the server and removes its folder.
  ~PostgresServer();
  PostgresServer(const PostgresServer&) = delete;
  PostgresServer& operator=(const PostgresServer&) = delete;

  // Empty when the server runs; else what went wrong, with the server's log.
  const std::string& error() const { return error_; }

  // The URL of a new, empty database. REQUIRES: the server runs.
  std::string NewDatabase();

  // An outage: connections break, later ones are refused, until Start. The data stay.
  void Stop();
  // False if the server does not come up; error() then says why.
  bool Start();

 private:
  std::string Url(const std::string& database) const;

  // Not below TMPDIR: a socket's path has at most 107 bytes, and the server's user must reach it.
  const TemporaryFolder temporary_{"/tmp"};
  const std::string folder_ = temporary_.path();
  std::string bin_folder_;
  std::string error_;
  int num_databases_ = 0;
  std::unique_ptr<Process> server_;
};

}  // namespace ultraspeed::testing
