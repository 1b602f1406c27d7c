// What every gRPC-speaking file of the router includes, compiled once (service.cmake). Include what
// you use all the same.
#pragma once

#include "common/metrics.h"
#include "ultraspeed/v1/inference.grpc.pb.h"
#include "ultraspeed/v1/worker.grpc.pb.h"
