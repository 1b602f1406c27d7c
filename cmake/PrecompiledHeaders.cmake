# What nearly every file includes of other projects, compiled once: half of the build would be reading it again. ultraspeed_headers is for
# libraries and programs, ultraspeed_test_headers for tests, whose own code is not optimized. Nothing of ours is in them. Files include what
# they use all the same: a machine without gRPC builds without the first one.
#
# A precompiled header wants the same options everywhere. These two are what some of the packages ask for.
set(ULTRASPEED_OPTIONS $<$<COMPILE_LANGUAGE:CXX>:-pthread> $<$<COMPILE_LANGUAGE:CXX>:-D_FILE_OFFSET_BITS=64>)
set(ULTRASPEED_TEST_OPTIONS $<$<AND:$<CONFIG:Release>,$<COMPILE_LANGUAGE:CXX>>:-O0>)
if(ULTRASPEED_TSAN)
  set(ULTRASPEED_TEST_OPTIONS -O0)
endif()

# ultraspeed_precompiled(NAME OPTIONS ... HEADERS <a.h> ... LINKS t ...)
function(ultraspeed_precompiled name)
  cmake_parse_arguments(ARG "" "" "OPTIONS;HEADERS;LINKS" ${ARGN})
  file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/${name}.cc CONTENT "")
  add_library(${name} OBJECT ${PROJECT_BINARY_DIR}/${name}.cc)
  ultraspeed_configure(${name})
  set_target_properties(${name} PROPERTIES UNITY_BUILD OFF)
  target_compile_options(${name} PRIVATE ${ARG_OPTIONS})
  target_link_libraries(${name} PRIVATE absl::status absl::statusor absl::strings absl::synchronization absl::time Boost::json ${ARG_LINKS})
  target_precompile_headers(${name} PRIVATE
    <absl/status/statusor.h> <absl/strings/str_cat.h> <absl/synchronization/mutex.h> <absl/time/time.h> <boost/json.hpp> ${ARG_HEADERS})
endfunction()

set(grpc_headers)
set(grpc_links)
if(ULTRASPEED_SERVING)
  # Messages only: every file that is compiled instantiates again what the stubs of services need, used or not.
  set(grpc_headers <grpcpp/grpcpp.h> <ultraspeed/v1/inference.pb.h> <ultraspeed/v1/worker.pb.h>)
  set(grpc_links ultraspeed_proto)
  ultraspeed_precompiled(ultraspeed_headers HEADERS ${grpc_headers} LINKS ${grpc_links})
endif()
ultraspeed_precompiled(ultraspeed_test_headers
  OPTIONS ${ULTRASPEED_TEST_OPTIONS}
  HEADERS <gmock/gmock.h> <gtest/gtest.h> ${grpc_headers}
  LINKS GTest::gtest GTest::gmock ${grpc_links})
