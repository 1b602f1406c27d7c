// Early return for absl::Status and absl::StatusOr. The Abseil of Debian 12 carries no such macros.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define ULTRASPEED_CONCAT_INNER(a, b) a##b
#define ULTRASPEED_CONCAT(a, b) ULTRASPEED_CONCAT_INNER(a, b)

// RETURN_IF_ERROR(DoSomething());
#define RETURN_IF_ERROR(expression)                                                   \
  do {                                                                                \
    if (absl::Status status_macro_status = (expression); !status_macro_status.ok()) { \
      return status_macro_status;                                                     \
    }                                                                                 \
  } while (false)

// ASSIGN_OR_RETURN(auto value, ComputeValue());
#define ASSIGN_OR_RETURN(target, expression) \
  ULTRASPEED_ASSIGN_OR_RETURN(ULTRASPEED_CONCAT(status_macro_result_, __LINE__), target, expression)
#define ULTRASPEED_ASSIGN_OR_RETURN(result, target, expression) \
  auto result = (expression);                                   \
  if (!result.ok()) return std::move(result).status();          \
  target = *std::move(result)
