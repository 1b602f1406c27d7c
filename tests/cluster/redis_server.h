// A real redis-server on a free loopback port, without persistence, in a folder of its own. Ended
// by its own pid. Thread contract: one thread.
#pragma once

#include <memory>
#include <string>

#include "tests/cluster/process.h"
#include "tests/temporary_folder.h"

namespace ultraspeed::testing {

class RedisServer {
 public:
  RedisServer();  // started; check running()
  ~RedisServer();

  // Empty again after every start, on the same port. False if it does not answer within 10 s.
  bool Start();
  void Kill();    // as kill -9
  void Freeze();  // SIGSTOP: connections stay, nothing answers
  void Thaw();

  bool running() const { return process_ != nullptr; }
  int port() const { return port_; }
  // "redis://127.0.0.1:port"
  std::string url() const;
  std::string log() const { return process_ == nullptr ? "not started" : process_->Output(); }

 private:
  const TemporaryFolder temporary_;
  const std::string folder_ = temporary_.path();
  int port_ = 0;
  std::unique_ptr<Process> process_;
};

}  // namespace ultraspeed::testing
