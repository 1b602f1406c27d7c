#include "common/grammar/constraint_cache.h"

#include "absl/strings/str_cat.h"
#include "common/grammar/json_schema.h"
#include "common/status_macros.h"

namespace ultraspeed::grammar {

absl::StatusOr<std::shared_ptr<Constraint>> ConstraintCache::ForJsonSchema(
    absl::string_view schema_text, absl::string_view field_name) {
  return For(absl::StrCat("schema ", schema_text),
             [&] { return FromJsonSchema(schema_text, field_name); });
}

std::shared_ptr<Constraint> ConstraintCache::ForAnyJsonObject() {
  return *For("any object", [] { return AnyJsonObject(); });
}

absl::StatusOr<std::shared_ptr<Constraint>> ConstraintCache::ForTools(
    absl::Span<const CallableTool> tools, absl::string_view field_name) {
  std::string key = "tools";
  for (const CallableTool& tool : tools) {
    const absl::string_view schema = tool.is_strict ? tool.parameters : absl::string_view();
    absl::StrAppend(&key, " ", tool.is_strict, " ", tool.name.size(), " ", tool.name, " ",
                    schema.size(), " ", schema);
  }
  return For(key, [&] { return FromTools(tools, field_name); });
}

absl::StatusOr<std::shared_ptr<Constraint>> ConstraintCache::For(const std::string& key,
                                                                 MakeGrammar make_grammar) {
  {
    absl::MutexLock lock(&mutex_);
    if (auto constraint = Find(key)) return constraint;
  }
  ASSIGN_OR_RETURN(std::shared_ptr<const Grammar> grammar, make_grammar());
  auto constraint = std::make_shared<Constraint>(std::move(grammar), vocabulary_);
  absl::MutexLock lock(&mutex_);
  if (auto other = Find(key)) return other;  // made meanwhile
  entries_.push_front({key, constraint});
  by_key_[key] = entries_.begin();
  if (entries_.size() > static_cast<size_t>(constraints_max_)) {
    by_key_.erase(entries_.back().key);
    entries_.pop_back();
  }
  return constraint;
}

std::shared_ptr<Constraint> ConstraintCache::Find(const std::string& key) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->constraint;
}

}  // namespace ultraspeed::grammar
