#include "common/metrics.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace ultraspeed {
namespace {

using testing::HasSubstr;

std::string HttpGet(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string reply;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = absl::StrCat("GET ", path, " HTTP/1.0\r\n\r\n");
    if (write(fd, request.data(), request.size()) > 0) {
      char buffer[4096];
      for (ssize_t got; (got = read(fd, buffer, sizeof(buffer))) > 0;)
        reply.append(buffer, static_cast<size_t>(got));
    }
  }
  close(fd);
  return reply;
}

TEST(MetricsTest, ServesOnAFreePort) {
  Metrics metrics;
  metrics.Counter("test_requests_total", "Requests", {{"kind", "good"}}).Increment(3);
  const absl::StatusOr<int> port = metrics.Serve("127.0.0.1:0");
  ASSERT_TRUE(port.ok()) << port.status();
  EXPECT_GT(*port, 0);
  EXPECT_THAT(HttpGet(*port, "/metrics"), HasSubstr("test_requests_total{kind=\"good\"} 3"));
}

TEST(MetricsTest, PortInUseIsAStatus) {
  Metrics first;
  const int port = *first.Serve("127.0.0.1:0");
  Metrics second;
  const absl::Status status = second.Serve(absl::StrCat("127.0.0.1:", port)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("metrics-listen=127.0.0.1"));
}

TEST(MetricsTest, SameNameAndLabelsAreOneSeries) {
  Metrics metrics;
  metrics.Counter("c_total", "C", {{"a", "1"}}).Increment();
  metrics.Counter("c_total", "C", {{"a", "1"}}).Increment();
  metrics.Counter("c_total", "C", {{"a", "2"}}).Increment();
  EXPECT_THAT(metrics.Text(), HasSubstr("c_total{a=\"1\"} 2"));
  EXPECT_THAT(metrics.Text(), HasSubstr("c_total{a=\"2\"} 1"));
}

TEST(MetricsTest, BucketsAscend) {
  for (const MetricBuckets* buckets :
       {&kTimePerOutputTokenBuckets, &kInterChunkBuckets, &kTokensPerRoundBuckets,
        &kTimeToFirstTokenBuckets, &kQueueWaitBuckets, &kRequestDurationBuckets,
        &kTokensPerSecondBuckets}) {
    EXPECT_TRUE(std::is_sorted(buckets->begin(), buckets->end()));
    EXPECT_EQ(std::adjacent_find(buckets->begin(), buckets->end()), buckets->end());
  }
}

}  // namespace
}  // namespace ultraspeed
