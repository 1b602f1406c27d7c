#include "tests/cluster/redis_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "tests/cluster/eventually.h"

namespace ultraspeed::testing {
namespace {

sockaddr_in Loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

bool AnswersPing(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  const sockaddr_in address = Loopback(port);
  char reply[5] = {};
  const bool answered =
      connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 &&
      write(fd, "PING\r\n", 6) == 6 && read(fd, reply, 5) == 5 && std::string(reply, 5) == "+PONG";
  close(fd);
  return answered;
}

}  // namespace

RedisServer::RedisServer() {
  port_ = FreePort();
  Start();
}

RedisServer::~RedisServer() { Kill(); }

bool RedisServer::Start() {
  process_ = std::make_unique<Process>(
      folder_, "redis",
      std::vector<std::string>{FindProgram("redis-server"), "--port", absl::StrCat(port_), "--bind",
                               "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder_});
  const bool answers = Eventually([this] { return AnswersPing(port_) || process_->HasEnded(); },
                                  absl::Seconds(10)) &&
                       !process_->HasEnded();
  if (!answers) process_ = nullptr;
  return answers;
}

void RedisServer::Kill() {
  if (process_ == nullptr) return;
  process_->Signal(SIGKILL);
  process_->Wait(absl::Seconds(10));
  process_ = nullptr;
}

void RedisServer::Freeze() { process_->Signal(SIGSTOP); }
void RedisServer::Thaw() { process_->Signal(SIGCONT); }

std::string RedisServer::url() const { return absl::StrCat("redis://127.0.0.1:", port_); }

}  // namespace ultraspeed::testing
