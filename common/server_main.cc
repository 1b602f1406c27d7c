#include "common/server_main.h"

#include <grpc/grpc.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "common/logging.h"

namespace ultraspeed {
namespace {

sigset_t ShutdownSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

ShutdownSignal::ShutdownSignal() {
  const sigset_t set = ShutdownSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
  thread_ = std::thread([this] { Run(); });
}

ShutdownSignal::~ShutdownSignal() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  pthread_kill(thread_.native_handle(), SIGTERM);  // wakes sigwait
  thread_.join();
}

void ShutdownSignal::Run() {
  const sigset_t set = ShutdownSignals();
  int num_received = 0;
  while (true) {
    int number = 0;
    if (sigwait(&set, &number) != 0) continue;
    absl::MutexLock lock(&mutex_);
    if (stopping_) return;
    if (++num_received == 2) _exit(128 + number);
    if (!requested_) signal_ = number;
    requested_ = true;
  }
}

int ShutdownSignal::Wait() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&requested_));
  return signal_;
}

bool ShutdownSignal::WaitFor(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&requested_), timeout);
}

void ShutdownSignal::Request() {
  absl::MutexLock lock(&mutex_);
  requested_ = true;
}

absl::Status AnnounceReady(const std::string& program, const ReadyPorts& ports,
                           const std::string& ready_file) {
  std::string json =
      absl::StrCat("{\"port\":", ports.port, ",\"metrics_port\":", ports.metrics_port);
  if (ports.http_port != 0) absl::StrAppend(&json, ",\"http_port\":", ports.http_port);
  if (ports.admin_port != 0) absl::StrAppend(&json, ",\"admin_port\":", ports.admin_port);
  json.push_back('}');
  if (!ready_file.empty()) {
    const std::string temporary = absl::StrCat(ready_file, ".", getpid());
    std::ofstream file(temporary, std::ios::trunc);
    file << json << "\n";
    file.close();
    if (!file || std::rename(temporary.c_str(), ready_file.c_str()) != 0) {
      return absl::InvalidArgumentError(absl::StrCat("ready-file=", ready_file, ": cannot write"));
    }
  }
  std::printf("ready %s\n", json.c_str());
  std::fflush(stdout);
  Log(LogLevel::kInfo, program + ".ready",
      {{"port", ports.port},
       {"metrics_port", ports.metrics_port},
       {"http_port", ports.http_port},
       {"admin_port", ports.admin_port}});
  return absl::OkStatus();
}

void HoldGrpc() {
  static const bool held = [] {
    grpc_init();
    return true;
  }();
  static_cast<void>(held);
}

}  // namespace ultraspeed
