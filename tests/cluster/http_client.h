// HTTP/1.1 over a loopback socket as bytes: what a test wants to send, however wrong, and what came
// back. Thread contract: one thread.
#pragma once

#include <boost/json.hpp>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace ultraspeed::testing {

struct HttpResponse {
  int status = 0;                              // 0: nothing came, or no HTTP
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // chunks joined
  bool is_complete = false;                    // up to its end, not cut

  boost::json::value json() const;  // null if the body is none
  std::string header(const std::string& name) const;
};

class HttpConnection {
 public:
  // `receive_bytes` > 0: a small receive buffer, for a client that does not read.
  explicit HttpConnection(int port, int receive_bytes = 0);
  ~HttpConnection();
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  bool Send(absl::string_view bytes);
  // The next response, or what came of it until `timeout` or the end. `is_head`: without a body.
  HttpResponse Receive(absl::Duration timeout = absl::Seconds(20), bool is_head = false);
  // Bytes as they come, until there are `text` among them, the end, or the timeout.
  std::string ReceiveUntil(absl::string_view text, absl::Duration timeout = absl::Seconds(20));
  // The other side has closed, and nothing is left to read.
  bool IsClosed(absl::Duration timeout);
  void Close();

 private:
  bool ReadMore(absl::Time end);  // into buffer_

  int fd_ = -1;
  std::string buffer_;
};

// "POST /path HTTP/1.1" with Host, Content-Type and Content-Length.
std::string HttpPost(const std::string& path, const std::string& body, const std::string& key,
                     const std::string& more_headers = "");
std::string HttpGetRequest(const std::string& path, const std::string& key);
// The body of GET path at 127.0.0.1:port; empty if nothing answers.
std::string HttpGet(int port, const std::string& path);

// Data of every event of an SSE body; the names of events apart. Comments are left out.
struct SseEvents {
  std::vector<std::string> data;
  std::vector<std::string> names;  // of those that have one
  bool is_whole = true;            // ends with an empty line

  // Of OpenAI's chunks: what `choices[0].delta.<field>` or `choices[0].text` add up to.
  std::string Joined(const std::string& field) const;
};
SseEvents ParseSse(const std::string& body);

}  // namespace ultraspeed::testing
