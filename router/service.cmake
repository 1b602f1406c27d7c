# ultraspeed_router_service: everything that makes gRPC calls or serves them; and the program.
ultraspeed_library(ultraspeed_router_service
  SOURCES
    admin_messages.cc
    admin_service.cc
    admin_tokens.cc
    finish_name.cc
    relay.cc
    request_decoder.cc
    router_metrics.cc
    routing_policy.cc
    sweeper.cc
    worker_pool.cc
  ALONE inference_service.cc usage_query.cc
  LINKS
    ultraspeed_router_billing ultraspeed_router_accounts ultraspeed_router_core ultraspeed_common ultraspeed_proto
    absl::flat_hash_map absl::flat_hash_set absl::status absl::statusor absl::strings absl::synchronization absl::time
    gRPC::grpc++ OpenSSL::Crypto Threads::Threads)

ultraspeed_program(ultraspeed-router SOURCES main.cc LINKS ultraspeed_router_service ultraspeed_router_http)
