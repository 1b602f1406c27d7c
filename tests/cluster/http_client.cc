#include "tests/cluster/http_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"

namespace ultraspeed::testing {

namespace json = boost::json;

json::value HttpResponse::json() const {
  boost::system::error_code error;
  return boost::json::parse(body, error);
}

std::string HttpResponse::header(const std::string& name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? "" : found->second;
}

HttpConnection::HttpConnection(int port, int receive_bytes) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
  if (receive_bytes > 0) {
    setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof(receive_bytes));
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) Close();
}

HttpConnection::~HttpConnection() { Close(); }

void HttpConnection::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

bool HttpConnection::Send(absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t num_sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (num_sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(num_sent));
  }
  return true;
}

bool HttpConnection::ReadMore(absl::Time end) {
  pollfd waiting = {.fd = fd_, .events = POLLIN, .revents = 0};
  const absl::Duration left = std::max(end - absl::Now(), absl::ZeroDuration());
  if (poll(&waiting, 1, static_cast<int>(absl::ToInt64Milliseconds(left))) != 1) return false;
  char block[16384];
  const ssize_t num_read = read(fd_, block, sizeof(block));
  if (num_read <= 0) return false;
  buffer_.append(block, static_cast<size_t>(num_read));
  return true;
}

HttpResponse HttpConnection::Receive(absl::Duration timeout, bool is_head) {
  const absl::Time end = absl::Now() + timeout;
  HttpResponse response;
  size_t head_end;
  while ((head_end = buffer_.find("\r\n\r\n")) == std::string::npos) {
    if (!ReadMore(end)) return response;
  }
  const std::vector<std::string> lines = absl::StrSplit(buffer_.substr(0, head_end), "\r\n");
  buffer_.erase(0, head_end + 4);
  if (!absl::StartsWith(lines[0], "HTTP/1.1 ")) return response;
  (void)absl::SimpleAtoi(lines[0].substr(9, 3), &response.status);
  for (size_t i = 1; i < lines.size(); ++i) {
    const std::pair<std::string, std::string> pair =
        absl::StrSplit(lines[i], absl::MaxSplits(": ", 1));
    response.headers[absl::AsciiStrToLower(pair.first)] = pair.second;
  }
  if (response.status == 100 || is_head) {
    response.is_complete = true;
  } else if (response.header("transfer-encoding") == "chunked") {
    while (true) {
      const size_t line_end = buffer_.find("\r\n");
      size_t num_bytes = 0;
      if (line_end != std::string::npos) {
        num_bytes = std::stoul(buffer_.substr(0, line_end), nullptr, 16);
      }
      if (line_end != std::string::npos && buffer_.size() >= line_end + 4 + num_bytes) {
        response.body += buffer_.substr(line_end + 2, num_bytes);
        buffer_.erase(0, line_end + 4 + num_bytes);
        response.is_complete = num_bytes == 0;
        if (response.is_complete) break;
      } else if (!ReadMore(end)) {
        break;
      }
    }
  } else if (size_t num_bytes; absl::SimpleAtoi(response.header("content-length"), &num_bytes)) {
    while (buffer_.size() < num_bytes && ReadMore(end)) {
    }
    response.is_complete = buffer_.size() >= num_bytes;
    response.body = buffer_.substr(0, num_bytes);
    buffer_.erase(0, num_bytes);
  } else {
    while (ReadMore(end)) {
    }
    response.is_complete = true;
    response.body = std::exchange(buffer_, {});
  }
  return response;
}

std::string HttpConnection::ReceiveUntil(absl::string_view text, absl::Duration timeout) {
  const absl::Time end = absl::Now() + timeout;
  while (!absl::StrContains(buffer_, text) && ReadMore(end)) {
  }
  return std::exchange(buffer_, {});
}

bool HttpConnection::IsClosed(absl::Duration timeout) {
  const absl::Time end = absl::Now() + timeout;
  while (ReadMore(end)) {
  }
  return absl::Now() < end;
}

std::string HttpPost(const std::string& path, const std::string& body, const std::string& key,
                     const std::string& more_headers) {
  return absl::StrCat("POST ", path, " HTTP/1.1\r\nHost: localhost\r\n",
                      "Content-Type: application/json\r\nContent-Length: ", body.size(), "\r\n",
                      key.empty() ? "" : absl::StrCat("Authorization: Bearer ", key, "\r\n"),
                      more_headers, "\r\n", body);
}

std::string HttpGetRequest(const std::string& path, const std::string& key) {
  return absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: localhost\r\n",
                      key.empty() ? "" : absl::StrCat("Authorization: Bearer ", key, "\r\n"),
                      "\r\n");
}

std::string HttpGet(int port, const std::string& path) {
  HttpConnection connection(port);
  return connection.Send(HttpGetRequest(path, "")) ? connection.Receive().body : "";
}

SseEvents ParseSse(const std::string& body) {
  SseEvents events;
  events.is_whole = absl::EndsWith(body, "\n\n");
  for (const absl::string_view event : absl::StrSplit(body, "\n\n", absl::SkipEmpty())) {
    for (const absl::string_view line : absl::StrSplit(event, '\n')) {
      if (absl::StartsWith(line, "data: ")) events.data.emplace_back(line.substr(6));
      if (absl::StartsWith(line, "event: ")) events.names.emplace_back(line.substr(7));
    }
  }
  return events;
}

std::string SseEvents::Joined(const std::string& field) const {
  std::string joined;
  for (const std::string& one : data) {
    if (one == "[DONE]") continue;
    const json::value event = json::parse(one);
    const json::value* choices = event.as_object().if_contains("choices");
    if (choices == nullptr || choices->as_array().empty()) continue;
    const json::object& choice = choices->at(0).as_object();
    const json::value* delta = choice.if_contains("delta");
    const json::object& texts = delta == nullptr ? choice : delta->as_object();
    if (const json::value* text = texts.if_contains(field)) joined += text->as_string().c_str();
  }
  return joined;
}

}  // namespace ultraspeed::testing
