#include "common/server_main.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>

#include "common/config.h"
#include "common/grpc_status.h"
#include "common/status_macros.h"

namespace ultraspeed {
namespace {

TEST(ShutdownSignalTest, WaitReturnsTheSignal) {
  ShutdownSignal shutdown;
  EXPECT_FALSE(shutdown.WaitFor(absl::ZeroDuration()));
  kill(getpid(), SIGTERM);
  EXPECT_EQ(shutdown.Wait(), SIGTERM);
  EXPECT_TRUE(shutdown.WaitFor(absl::ZeroDuration()));
}

TEST(ShutdownSignalTest, RequestEndsTheWait) {
  ShutdownSignal shutdown;
  shutdown.Request();
  EXPECT_EQ(shutdown.Wait(), 0);
}

TEST(ShutdownSignalDeathTest, SecondSignalExitsAtOnce) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        ShutdownSignal shutdown;
        kill(getpid(), SIGINT);
        shutdown.Wait();
        kill(getpid(), SIGINT);
        pause();
      },
      testing::ExitedWithCode(128 + SIGINT), "");
}

TEST(AnnounceReadyTest, WritesTheFile) {
  const std::string path = testing::TempDir() + "/ready_test.json";
  ASSERT_TRUE(AnnounceReady("test", {.port = 12, .metrics_port = 34}, path).ok());
  EXPECT_EQ(*ReadFile(path, 1000, "ready"), "{\"port\":12,\"metrics_port\":34}\n");
  std::remove(path.c_str());
  EXPECT_FALSE(AnnounceReady("test", {.port = 12}, "/nonexistent/dir/ready").ok());
}

TEST(GrpcStatusTest, CodesAndMessagesSurviveBothWays) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    const grpc::Status there = ToGrpcStatus(status);
    EXPECT_EQ(static_cast<int>(there.error_code()), code);
    EXPECT_EQ(FromGrpcStatus(there), status);
  }
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  EXPECT_TRUE(FromGrpcStatus(grpc::Status::OK).ok());
  EXPECT_EQ(FromGrpcStatus(grpc::Status(grpc::StatusCode::DO_NOT_USE, "odd")).code(),
            absl::StatusCode::kUnknown);
}

absl::StatusOr<int> Twice(absl::StatusOr<int> value) {
  ASSIGN_OR_RETURN(const int once, std::move(value));
  RETURN_IF_ERROR(once > 100 ? absl::OutOfRangeError("large") : absl::OkStatus());
  return 2 * once;
}

TEST(StatusMacrosTest, ReturnEarly) {
  EXPECT_EQ(*Twice(21), 42);
  EXPECT_EQ(Twice(101).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(Twice(absl::NotFoundError("")).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace ultraspeed
