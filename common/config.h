// Flags and a YAML file with the same names, from one table per program.
//
//   Options options;
//   FlagTable flags("ultraspeed-worker", "Serves one model over gRPC.");
//   flags.String("listen", &options.listen, "host:port", "Where to serve; port 0 takes a free
//   one"); flags.Int("max-sequences", &options.max_sequences, {1, 256}, "sequences", "How many
//   requests run at once"); ASSIGN_OR_RETURN(const ParseOutcome outcome, flags.Parse(argc, argv));
//
// Forms: --name=value, --name value, --flag (true), --no-flag (false). `--config file.yaml` is read
// first, flags win over it. A list is given as --name a,b or as a YAML sequence. An unknown name, a
// doubled YAML key or a bad value is INVALID_ARGUMENT that names it and what is allowed. The value
// that a target holds when it is registered is its default.
//
// Thread: one, at start-up.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace ultraspeed {

struct IntRange {
  int64_t min = 0;
  int64_t max = std::numeric_limits<int32_t>::max();
};

struct DoubleRange {
  double min = 0;
  double max = std::numeric_limits<double>::max();
};

enum class ParseOutcome : uint8_t { kRun, kHelp };

class FlagTable {
 public:
  FlagTable(std::string program, std::string summary);

  // Targets are not owned and must outlive Parse.
  void String(std::string name, std::string* target, std::string unit, std::string help);
  void StringList(std::string name, std::vector<std::string>* target, std::string unit,
                  std::string help);
  // One of `choices`.
  void Choice(std::string name, std::string* target, std::vector<std::string> choices,
              std::string help);
  void Bool(std::string name, bool* target, std::string help);
  void Int(std::string name, int* target, IntRange range, std::string unit, std::string help);
  void Int64(std::string name, int64_t* target, IntRange range, std::string unit, std::string help);
  void Double(std::string name, double* target, DoubleRange range, std::string unit,
              std::string help);
  // "250ms", "1.5s", "2m"; not negative.
  void Duration(std::string name, absl::Duration* target, std::string help);
  // Words that are not flags are appended to `target`; without this call they are an error.
  void Positional(std::string name, std::vector<std::string>* target, std::string help);

  // kHelp: --help was given; print Help() and exit 0.
  absl::StatusOr<ParseOutcome> Parse(int argc, const char* const* argv);
  absl::Status ParseYaml(absl::string_view text, const std::string& source);

  // Every flag with default, unit and meaning.
  std::string Help() const;

 private:
  struct Flag {
    std::string name;
    std::variant<std::string*, std::vector<std::string>*, bool*, int*, int64_t*, double*,
                 absl::Duration*>
        target;
    std::string unit;
    std::string help;
    IntRange int_range = {};
    DoubleRange double_range = {};
    std::vector<std::string> choices = {};
    std::string default_text = {};
  };

  void Add(Flag flag);
  Flag* Find(absl::string_view name);
  absl::Status Set(Flag& flag, absl::string_view value, absl::string_view source);
  absl::Status ReadConfigFile();
  absl::StatusOr<ParseOutcome> ParseFlags(const std::vector<absl::string_view>& words);

  std::string program_;
  std::string summary_;
  std::string config_file_;
  std::vector<Flag> flags_;
  std::string positional_name_;
  std::string positional_help_;
  std::vector<std::string>* positional_ = nullptr;
};

// One whole file, at most `bytes_max`. The error names flag `what` and the path.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t bytes_max,
                                     absl::string_view what);

}  // namespace ultraspeed
