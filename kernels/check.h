// KERNELS_CHECK: preconditions of the operations. A failure is our own bug: it prints the operands
// and aborts.
//
// Used by kernels/ and by its tests; the only error form below the worker.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace ultraspeed::kernels::internal {

[[noreturn]] inline void CheckFailed(const char* file, int line, const char* expression,
                                     long long left, long long right) {
  std::fprintf(stderr, "%s:%d: KERNELS_CHECK failed: %s (%lld vs %lld)\n", file, line, expression,
               left, right);
  std::abort();
}

}  // namespace ultraspeed::kernels::internal

// KERNELS_CHECK(left, op, right): integers or enums; both are printed on failure.
#define KERNELS_CHECK(left, op, right)                                                           \
  do {                                                                                           \
    const auto check_left = (left);                                                              \
    const auto check_right = (right);                                                            \
    if (!(check_left op check_right)) [[unlikely]] {                                             \
      ::ultraspeed::kernels::internal::CheckFailed(__FILE__, __LINE__, #left " " #op " " #right, \
                                                   static_cast<long long>(check_left),           \
                                                   static_cast<long long>(check_right));         \
    }                                                                                            \
  } while (false)
