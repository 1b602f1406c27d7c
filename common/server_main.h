// What every server's main needs: signals, and telling the outside that it serves.
//
//   ShutdownSignal shutdown;            // first, before any other thread exists
//   ... build, bind (port 0 is fine) ...
//   AnnounceReady(...);
//   shutdown.Wait();                    // first SIGTERM or SIGINT
//   ... drain with a deadline, stop, return 0 ...
#pragma once

#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace ultraspeed {

// Blocks SIGTERM and SIGINT in the calling thread and in all threads started later, ignores
// SIGPIPE, and waits for the two on a thread of its own. The second of them ends the process at
// once with 128 + number. Thread: constructed and destroyed by main; Wait and Request from any.
class ShutdownSignal {
 public:
  ShutdownSignal();
  ~ShutdownSignal();
  ShutdownSignal(const ShutdownSignal&) = delete;
  ShutdownSignal& operator=(const ShutdownSignal&) = delete;

  // Returns after the first signal, or Request(). The signal's number, or 0.
  int Wait();
  // False when `timeout` passed without one.
  bool WaitFor(absl::Duration timeout);
  // As if a signal had come.
  void Request();

 private:
  void Run();

  absl::Mutex mutex_;
  bool requested_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  int signal_ ABSL_GUARDED_BY(mutex_) = 0;
  std::thread thread_;
};

struct ReadyPorts {
  int port = 0;
  int metrics_port = 0;  // 0 = no metrics endpoint
  int http_port = 0;     // 0 = no HTTP endpoint
  int admin_port = 0;    // 0 = no admin endpoint
};

// Logs `<program>.ready`, prints one line `ready {"port":..,"metrics_port":..}` on standard output
// and, when `ready_file` is not empty, writes that JSON to it by rename, so a reader sees all of it
// or nothing. Call when requests can be served.
absl::Status AnnounceReady(const std::string& program, const ReadyPorts& ports,
                           const std::string& ready_file);

// Keeps the gRPC library initialised until the process ends: its shut-down, when the last server or
// channel goes, now and then waits 10 s for a sleeping poller (seen with 1.51). Cheap to repeat.
void HoldGrpc();

}  // namespace ultraspeed
