// mTLS between a real server and real channels, with a certificate made on the spot.
#include <gmock/gmock.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/tls.h"
#include "tests/common/certificate.h"

namespace ultraspeed {
namespace {

using testing::Certificate;

// UNIMPLEMENTED: the handshake worked and the empty server answered. UNAVAILABLE: it did not.
grpc::StatusCode Call(int port, const TlsOptions& options) {
  const std::string target = absl::StrCat("localhost:", port);
  const auto credentials = CreateChannelCredentials(options, target);
  EXPECT_TRUE(credentials.ok()) << credentials.status();
  grpc::GenericStub stub(grpc::CreateChannel(target, *credentials));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  const grpc::Slice nothing("");
  const grpc::ByteBuffer request(&nothing, 1);
  grpc::ByteBuffer response;
  grpc::StatusCode code = grpc::StatusCode::OK;
  absl::Notification done;
  stub.UnaryCall(&context, "/none/None", {}, &request, &response, [&](const grpc::Status& status) {
    code = status.error_code();
    done.Notify();
  });
  done.WaitForNotification();
  return code;
}

TEST(TlsHandshakeTest, MutualTlsAdmitsOnlyItsOwn) {
  const Certificate ours, strangers;
  const auto credentials = CreateServerCredentials(
      {.cert_file = ours.cert_file(), .key_file = ours.key_file(), .ca_file = ours.cert_file()},
      "0.0.0.0:0");
  ASSERT_TRUE(credentials.ok()) << credentials.status();
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", *credentials, &port);
  grpc::CallbackGenericService nothing;  // answers UNIMPLEMENTED
  builder.RegisterCallbackGenericService(&nothing);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  ASSERT_NE(server, nullptr);
  EXPECT_EQ(Call(port, {.cert_file = ours.cert_file(),
                        .key_file = ours.key_file(),
                        .ca_file = ours.cert_file()}),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(Call(port, {.ca_file = ours.cert_file()}), grpc::StatusCode::UNAVAILABLE)
      << "no certificate shown";
  EXPECT_EQ(Call(port, {.cert_file = strangers.cert_file(),
                        .key_file = strangers.key_file(),
                        .ca_file = ours.cert_file()}),
            grpc::StatusCode::UNAVAILABLE)
      << "signed by somebody else";
  EXPECT_EQ(Call(port, {.ca_file = strangers.cert_file()}), grpc::StatusCode::UNAVAILABLE)
      << "the client does not know the server";
  EXPECT_EQ(Call(port, {.insecure = true}), grpc::StatusCode::UNAVAILABLE) << "in the clear";
  server->Shutdown();
}

}  // namespace
}  // namespace ultraspeed
