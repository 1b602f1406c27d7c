#include "tests/cluster/process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <boost/json.hpp>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"

extern char** environ;

namespace ultraspeed::testing {

std::string BinFile(const std::string& program) {
  return absl::StrCat(ULTRASPEED_BIN_DIR, "/", program);
}

std::string FindProgram(const std::string& name) {
  const char* path = std::getenv("PATH");
  for (const absl::string_view folder : absl::StrSplit(path == nullptr ? "/usr/bin" : path, ':')) {
    const std::string file = absl::StrCat(folder, "/", name);
    if (access(file.c_str(), X_OK) == 0) return file;
  }
  return name;
}

int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t address_bytes = sizeof(address);
  bind(fd, reinterpret_cast<sockaddr*>(&address), address_bytes);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &address_bytes);
  close(fd);
  return ntohs(address.sin_port);
}

std::string ReadWholeFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

Process::Process(const std::string& folder, const std::string& name,
                 std::vector<std::string> command, std::map<std::string, std::string> environment,
                 const std::string& input_file) {
  static std::atomic<int> counter{0};
  const int number = ++counter;
  output_file_ = absl::StrCat(folder, "/", name, "-", number, ".out");
  log_file_ = absl::StrCat(folder, "/", name, "-", number, ".log");

  std::vector<std::string> variables;
  for (char** one = environ; *one != nullptr; ++one) variables.emplace_back(*one);
  for (const auto& [key, value] : environment) variables.push_back(absl::StrCat(key, "=", value));
  std::vector<char*> arguments, variable_pointers;
  for (std::string& word : command) arguments.push_back(word.data());
  for (std::string& variable : variables) variable_pointers.push_back(variable.data());
  arguments.push_back(nullptr);
  variable_pointers.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, input_file.c_str(), O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output_file_.c_str(),
                                   O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, log_file_.c_str(),
                                   O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (posix_spawn(&pid_, command[0].c_str(), &actions, nullptr, arguments.data(),
                  variable_pointers.data()) != 0) {
    pid_ = -1;
    exit_status_ = 127;
  }
  posix_spawn_file_actions_destroy(&actions);
}

Process::~Process() {
  if (HasEnded()) return;
  Signal(SIGKILL);
  Wait(absl::Seconds(10));
}

void Process::Signal(int number) const {
  if (pid_ > 0 && exit_status_ == -1) kill(pid_, number);
}

int Process::Wait(absl::Duration timeout) {
  const absl::Time end = absl::Now() + timeout;
  while (exit_status_ == -1) {
    int status = 0;
    const pid_t ended = waitpid(pid_, &status, WNOHANG);
    if (ended == pid_) {
      exit_status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    } else if (absl::Now() >= end) {
      return -1;
    } else {
      absl::SleepFor(absl::Milliseconds(2));
    }
  }
  return exit_status_;
}

std::string Process::Output() const { return ReadWholeFile(output_file_); }
std::string Process::Log() const { return ReadWholeFile(log_file_); }

Server::Server(const std::string& folder, const std::string& name, const std::string& program,
               std::vector<std::string> flags)
    : ready_file_(absl::StrCat(folder, "/", name, ".ready.json")) {
  unlink(ready_file_.c_str());
  flags.insert(flags.begin(), BinFile(program));
  flags.push_back(absl::StrCat("--ready-file=", ready_file_));
  process_ = std::make_unique<Process>(folder, name, std::move(flags));
}

bool Server::AwaitReady() {
  const absl::Time end = absl::Now() + absl::Minutes(1);
  while (access(ready_file_.c_str(), R_OK) != 0) {
    if (process_->HasEnded() || absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  const boost::json::value ready = boost::json::parse(ReadWholeFile(ready_file_));
  port_ = static_cast<int>(ready.at("port").as_int64());
  metrics_port_ = static_cast<int>(ready.at("metrics_port").as_int64());
  if (const auto* http_port = ready.as_object().if_contains("http_port")) {
    http_port_ = static_cast<int>(http_port->as_int64());
  }
  if (const auto* admin_port = ready.as_object().if_contains("admin_port")) {
    admin_port_ = static_cast<int>(admin_port->as_int64());
  }
  return true;
}

std::string Server::address() const { return absl::StrCat("127.0.0.1:", port_); }

bool WriteKeyFiles(const std::string& folder, const std::string& key) {
  std::ofstream(folder + "/pepper") << "only for this test, 32 bytes long";
  Process hash(folder, "hash-key",
               {BinFile("ultraspeed-router"), "hash-key", "--pepper-file=" + folder + "/pepper",
                "--tenant=test", key});
  if (hash.Wait(absl::Seconds(10)) != 0) return false;
  std::ofstream(folder + "/keys") << hash.Output();
  return true;
}

}  // namespace ultraspeed::testing
