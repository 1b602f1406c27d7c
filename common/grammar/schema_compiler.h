// From a parsed JSON Schema to rules. Used by json_schema.cc, which says what is supported.
#pragma once

#include <array>
#include <boost/json.hpp>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/grammar/grammar.h"
#include "common/grammar/json_rules.h"
#include "common/limits.h"

namespace ultraspeed::grammar {

// Used once. Thread contract: one thread.
class SchemaCompiler {
 public:
  // Both pointers outlive the compiler.
  SchemaCompiler(GrammarBuilder* builder, const boost::json::value* root, absl::string_view name)
      : builder_(builder), rules_(builder), root_(root), name_(name) {}

  absl::StatusOr<RuleId> Compile();

 private:
  using Object = boost::json::object;
  struct Schema {
    const Object& keywords;
    const std::string& path;  // for errors
  };

  // The rule of a schema, which is compiled later. `step` leads to it from the one that is being
  // compiled, or from the root if that is a $ref.
  RuleId RuleOf(const boost::json::value* schema, std::string step);
  RuleId RuleOf(const boost::json::value* schema, std::string step, size_t parent);
  std::string PathOf(size_t pending) const;
  absl::StatusOr<RuleId> CompileOne(const boost::json::value& schema, const std::string& path);
  // By the one keyword that says it all; nullopt if there is none.
  absl::StatusOr<std::optional<RuleId>> CompileWhole(const Schema& schema);
  absl::StatusOr<RuleId> CompileAlternatives(const Schema& schema, absl::string_view keyword);
  absl::StatusOr<RuleId> CompileReference(const Schema& schema);
  absl::StatusOr<RuleId> CompileEnum(const Schema& schema);
  absl::StatusOr<RuleId> CompileType(const Schema& schema, absl::string_view type);
  absl::StatusOr<RuleId> CompileObject(const Schema& schema);
  absl::StatusOr<RuleId> CompileArray(const Schema& schema);
  absl::StatusOr<RuleId> CompileInteger(const Schema& schema);
  absl::StatusOr<RuleId> CompileNumber(const Schema& schema);
  absl::StatusOr<RuleId> CompileString(const Schema& schema);

  GrammarBuilder* const builder_;
  JsonRules rules_;
  const boost::json::value* const root_;
  const std::string name_;

  struct Pending {
    const boost::json::value* schema;
    std::string step;  // of its path; all of them written out could be long
    size_t parent;     // that the step begins at; its own number: none
  };
  absl::flat_hash_map<const boost::json::value*, RuleId> rule_of_;
  std::vector<Pending> pending_;  // and those that are done
  size_t current_ = 0;
  int num_properties_ = 0;
  int num_optional_ = 0;  // of them
  int num_alternatives_ = 0;
  int pattern_steps_left_ = limits::kSchemaPatternStepsMax;
  // By pattern or format and the bounds of the length: they are often the same.
  std::map<std::array<std::string, 4>, RuleId> rule_of_strings_;
};

}  // namespace ultraspeed::grammar
