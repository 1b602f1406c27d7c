#include "common/tls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

namespace ultraspeed {
namespace {

using ::testing::HasSubstr;

TEST(IsLoopbackTest, KnowsLoopback) {
  for (const char* address : {"localhost:1", "127.0.0.1:0", "127.9.8.7:80", "[::1]:50051",
                              "dns:///localhost:1", "ipv4:127.0.0.1:5", "unix:/tmp/s"}) {
    EXPECT_TRUE(IsLoopback(address)) << address;
  }
  for (const char* address :
       {"0.0.0.0:1", "10.0.0.1:1", "[::]:1", "example.com:1", "127.evil.com:1",
        "127.0.0.1.evil.com:1", "localhost.evil.com:1", "dns:///workers:1", ""}) {
    EXPECT_FALSE(IsLoopback(address)) << address;
  }
}

TEST(TlsTest, ClearTextOffLoopbackNeedsToBeSaid) {
  TlsOptions options;
  EXPECT_TRUE(CreateServerCredentials(options, "127.0.0.1:0").ok());
  const absl::Status status = CreateServerCredentials(options, "0.0.0.0:50051").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--insecure"));
  EXPECT_EQ(CreateChannelCredentials(options, "workers:50051").status().code(),
            absl::StatusCode::kFailedPrecondition);
  options.insecure = true;
  EXPECT_TRUE(CreateServerCredentials(options, "0.0.0.0:50051").ok());
  EXPECT_TRUE(CreateChannelCredentials(options, "workers:50051").ok());
}

TEST(TlsTest, FilesAreChecked) {
  EXPECT_THAT(std::string(CreateServerCredentials(
                              {.cert_file = "c.pem", .key_file = "", .ca_file = ""}, "127.0.0.1:0")
                              .status()
                              .message()),
              HasSubstr("only tls-cert"));
  EXPECT_THAT(std::string(CreateServerCredentials(
                              {.cert_file = "", .key_file = "", .ca_file = "ca.pem"}, "127.0.0.1:0")
                              .status()
                              .message()),
              HasSubstr("tls-ca needs"));
  EXPECT_EQ(
      CreateServerCredentials(
          {.cert_file = "/nonexistent", .key_file = "/nonexistent", .ca_file = ""}, "127.0.0.1:0")
          .status()
          .code(),
      absl::StatusCode::kNotFound);
  const std::string path = ::testing::TempDir() + "/not_pem";
  std::ofstream(path) << "hello";
  EXPECT_THAT(std::string(CreateServerCredentials(
                              {.cert_file = path, .key_file = path, .ca_file = ""}, "127.0.0.1:0")
                              .status()
                              .message()),
              HasSubstr("not a PEM file"));
  std::remove(path.c_str());
}

}  // namespace
}  // namespace ultraspeed
