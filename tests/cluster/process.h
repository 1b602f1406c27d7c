// A child process and the programs of this project as children on loopback with free ports. Every
// child is ended by its own pid. Thread contract: one thread.
#pragma once

#include <sys/types.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace ultraspeed::testing {

class Process {
 public:
  // Standard output and error go to files in `folder`. `environment` is added to ours.
  // `input_file`: standard input, default empty.
  Process(const std::string& folder, const std::string& name, std::vector<std::string> command,
          std::map<std::string, std::string> environment = {},
          const std::string& input_file = "/dev/null");
  // Kills it if it still runs.
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void Signal(int number) const;
  // Exit status, 128 + signal if one ended it, or -1 if it still runs after `timeout`.
  int Wait(absl::Duration timeout);
  bool HasEnded() { return Wait(absl::ZeroDuration()) != -1; }

  std::string Output() const;  // standard output so far
  std::string Log() const;     // standard error so far

 private:
  std::string output_file_;
  std::string log_file_;
  pid_t pid_ = -1;
  int exit_status_ = -1;
};

// A server that announces its port by ready file.
class Server {
 public:
  Server(const std::string& folder, const std::string& name, const std::string& program,
         std::vector<std::string> flags);

  // False if it ended or took longer than a minute. REQUIRED before port().
  bool AwaitReady();
  int port() const { return port_; }
  int metrics_port() const { return metrics_port_; }
  int http_port() const { return http_port_; }    // 0 = none
  int admin_port() const { return admin_port_; }  // likewise
  std::string address() const;
  Process& process() { return *process_; }

 private:
  std::string ready_file_;
  std::unique_ptr<Process> process_;
  int port_ = 0;
  int metrics_port_ = 0;
  int http_port_ = 0;
  int admin_port_ = 0;
};

std::string BinFile(const std::string& program);
std::string FindProgram(const std::string& name);  // in PATH; else `name`
// On loopback, free now: for a server that cannot be asked for port 0.
int FreePort();
std::string ReadWholeFile(const std::string& path);
// Files `pepper` and `keys` in `folder`, for a router that knows one key. False if it refuses it.
bool WriteKeyFiles(const std::string& folder, const std::string& key);

}  // namespace ultraspeed::testing
