// What functions that stand before a shared library's need: the library's own, and
// ThreadSanitizer's edges. A release of an address comes before every later acquire of it.
#pragma once

#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/base/config.h"

namespace ultraspeed::tsan {

// The next definition of this symbol behind the program's.
template <typename Function>
Function* Next(const std::string& symbol) {
  void* function = dlsym(RTLD_NEXT, symbol.c_str());
  if (function == nullptr) {
    std::fprintf(stderr, "%s: no other definition than that of tests/tsan\n", symbol.c_str());
    std::abort();
  }
  return reinterpret_cast<Function*>(function);
}

// Of a symbol that names Abseil: its namespaces carry the version's name, of which each
// distribution has its own.
inline std::string AbseilSymbol(const std::string& before, const std::string& behind) {
#define ULTRASPEED_NAME_OF(token) ULTRASPEED_NAME_OF_EXPANDED(token)
#define ULTRASPEED_NAME_OF_EXPANDED(token) #token
  const std::string version = ULTRASPEED_NAME_OF(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  return before + std::to_string(version.size()) + version + behind;
}

inline void Acquire(const void* address) { __tsan_acquire(const_cast<void*>(address)); }
inline void Release(const void* address) { __tsan_release(const_cast<void*>(address)); }

}  // namespace ultraspeed::tsan
