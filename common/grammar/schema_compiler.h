// From a parsed JSON Schema to rules. Used by json_schema.cc, whose header says what is supported.
#pragma once

#include <array>
#include <boost/json.hpp>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/grammar/argument_rules.h"
#include "common/grammar/argument_types.h"
#include "common/grammar/grammar.h"
#include "common/grammar/json_rules.h"
#include "common/grammar/multiple_range.h"
#include "common/limits.h"

namespace ultraspeed::grammar {

// Used once. Thread contract: one thread.
class SchemaCompiler {
 public:
  // Both pointers outlive the compiler.
  SchemaCompiler(GrammarBuilder* builder, const boost::json::value* root, absl::string_view name)
      : builder_(builder), rules_(builder), arguments_(builder), root_(root), name_(name) {}

  // The values that the schema allows, as JSON.
  absl::StatusOr<RuleId> Compile();
  // The schema's properties, as a model writes them into a call that has them as parameters.
  absl::StatusOr<RuleId> CompileParameters();

 private:
  using Object = boost::json::object;
  // How a schema's values are written: as JSON, or as an argument of these types.
  using Spelling = std::optional<ArgumentTypes>;
  struct Schema {
    const Object& keywords;
    const std::string& path;  // for errors
    const Spelling& spelling;
  };
  struct Property {
    std::string name;
    const boost::json::value* schema;  // null: `required` names it, `properties` does not
    bool is_required = false;
  };

  // The rule of a schema, which is compiled later. `step` leads to it from the one that is being
  // compiled, or from the root if that is a $ref.
  RuleId RuleOf(const boost::json::value* schema, std::string step, const Spelling& spelling = {});
  RuleId RuleOf(const boost::json::value* schema, std::string step, const Spelling& spelling,
                size_t parent);
  std::string PathOf(size_t pending) const;
  absl::Status CompilePending();
  absl::StatusOr<RuleId> CompileOne(const boost::json::value& schema, const std::string& path,
                                    const Spelling& spelling);
  RuleId AnyValue(const Spelling& spelling);
  // By the one keyword that says it all; nullopt if there is none.
  absl::StatusOr<std::optional<RuleId>> CompileWhole(const Schema& schema);
  absl::StatusOr<RuleId> CompileAlternatives(const Schema& schema, absl::string_view keyword);
  absl::StatusOr<RuleId> CompileReference(const Schema& schema);
  absl::StatusOr<RuleId> CompileEnum(const Schema& schema);
  absl::StatusOr<RuleId> CompileType(const Schema& schema, absl::string_view type);
  absl::StatusOr<RuleId> CompileArgument(const Schema& schema, absl::string_view type);
  absl::StatusOr<RuleId> CompileObject(const Schema& schema);
  absl::StatusOr<RuleId> CompileArray(const Schema& schema);
  absl::StatusOr<RuleId> CompileInteger(const Schema& schema);
  absl::StatusOr<RuleId> CompileNumber(const Schema& schema);
  absl::StatusOr<RuleId> CompileMultiples(const Schema& schema, const MultipleSpec& spec);
  absl::StatusOr<RuleId> CompileString(const Schema& schema);
  // Of an object, in the order in which they are written.
  absl::StatusOr<std::vector<Property>> PropertiesOf(const Object& keywords,
                                                     const std::string& path);

  GrammarBuilder* const builder_;
  JsonRules rules_;
  ArgumentRules arguments_;
  const boost::json::value* const root_;
  const std::string name_;

  struct Pending {
    const boost::json::value* schema;
    Spelling spelling;
    RuleId rule;
    std::string step;  // of its path; all of them written out could be long
    size_t parent;     // that the step begins at; its own number: none
  };
  // By what distinguishes spellings.
  absl::flat_hash_map<std::tuple<const boost::json::value*, int, int>, RuleId> rule_of_;
  std::vector<Pending> pending_;  // and those that are done
  size_t current_ = 0;
  int num_properties_ = 0;
  int num_optional_ = 0;  // of them
  int num_alternatives_ = 0;
  int automaton_steps_left_ = limits::kSchemaAutomatonStepsMax;
  // By pattern or format, the bounds of the length and the spelling: they are often the same.
  std::map<std::array<std::string, 5>, RuleId> rule_of_strings_;
};

}  // namespace ultraspeed::grammar
