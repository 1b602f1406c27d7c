// CHECK_THAT: what only a bug of ours can break. A failure prints the condition and the operands
// and aborts. What an outsider can cause is a Status instead.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace ultraspeed::internal {

[[noreturn]] inline void CheckFailed(const char* file, int line, const char* expression,
                                     long long left, long long right) {
  std::fprintf(stderr, "%s:%d: check failed: %s (%lld vs %lld)\n", file, line, expression, left,
               right);
  std::abort();
}

}  // namespace ultraspeed::internal

// CHECK_THAT(left, op, right): integers, bools or enums.
#define CHECK_THAT(left, op, right)                                                     \
  do {                                                                                  \
    const auto check_left = (left);                                                     \
    const auto check_right = (right);                                                   \
    if (!(check_left op check_right)) [[unlikely]] {                                    \
      ::ultraspeed::internal::CheckFailed(__FILE__, __LINE__, #left " " #op " " #right, \
                                          static_cast<long long>(check_left),           \
                                          static_cast<long long>(check_right));         \
    }                                                                                   \
  } while (false)
