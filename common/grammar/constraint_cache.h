// The constraints of a vocabulary that were used last, so that what tenants ask for again and again
// is compiled once.
#pragma once

#include <list>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "common/grammar/constraint.h"
#include "common/grammar/tool_calls.h"
#include "common/limits.h"

namespace ultraspeed::grammar {

// Thread contract: any number of threads. Grammars are made outside of the lock.
class ConstraintCache {
 public:
  explicit ConstraintCache(std::shared_ptr<const Vocabulary> vocabulary,
                           int constraints_max = limits::kConstraintsMax)
      : vocabulary_(std::move(vocabulary)), constraints_max_(constraints_max) {}

  absl::StatusOr<std::shared_ptr<Constraint>> ForJsonSchema(absl::string_view schema_text,
                                                            absl::string_view field_name);
  std::shared_ptr<Constraint> ForAnyJsonObject();
  // Of a call (tool_calls.h).
  absl::StatusOr<std::shared_ptr<Constraint>> ForTools(absl::Span<const CallableTool> tools,
                                                       absl::string_view field_name);

  // `key` stands for the grammar that `make_grammar` makes. Errors are not kept.
  using MakeGrammar = absl::FunctionRef<absl::StatusOr<std::shared_ptr<const Grammar>>()>;
  absl::StatusOr<std::shared_ptr<Constraint>> For(const std::string& key, MakeGrammar make_grammar);

 private:
  struct Entry {
    std::string key;
    std::shared_ptr<Constraint> constraint;
  };
  std::shared_ptr<Constraint> Find(const std::string& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<const Vocabulary> vocabulary_;
  const int constraints_max_;
  absl::Mutex mutex_;
  std::list<Entry> entries_ ABSL_GUARDED_BY(mutex_);  // last used first
  absl::flat_hash_map<std::string, std::list<Entry>::iterator> by_key_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ultraspeed::grammar
