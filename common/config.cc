#include "common/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <set>
#include <type_traits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace ultraspeed {
namespace {

absl::Status BadValue(absl::string_view source, absl::string_view name, absl::string_view value,
                      absl::string_view allowed) {
  return absl::InvalidArgumentError(absl::StrCat(source, name, "=", value, ": must be ", allowed));
}

std::string ToText(const std::string& v) { return v.empty() ? "none" : v; }
std::string ToText(const std::vector<std::string>& v) {
  return v.empty() ? "none" : absl::StrJoin(v, ",");
}
std::string ToText(bool v) { return v ? "true" : "false"; }
std::string ToText(absl::Duration v) { return absl::FormatDuration(v); }
template <typename T>
std::string ToText(T v) {
  return absl::StrCat(v);
}

std::string RangeText(int64_t min, int64_t max) {
  return absl::StrCat("a whole number in ", min, "..", max);
}

}  // namespace

FlagTable::FlagTable(std::string program, std::string summary)
    : program_(std::move(program)), summary_(std::move(summary)) {
  String("config", &config_file_, "file",
         "YAML file with the same names as these flags; flags win over it");
}

void FlagTable::Add(Flag flag) {
  flag.default_text = std::visit([](auto* target) { return ToText(*target); }, flag.target);
  flags_.push_back(std::move(flag));
}

void FlagTable::String(std::string name, std::string* target, std::string unit, std::string help) {
  Add({.name = std::move(name),
       .target = target,
       .unit = std::move(unit),
       .help = std::move(help)});
}

void FlagTable::StringList(std::string name, std::vector<std::string>* target, std::string unit,
                           std::string help) {
  Add({.name = std::move(name),
       .target = target,
       .unit = absl::StrCat(unit, ",.."),
       .help = std::move(help)});
}

void FlagTable::Choice(std::string name, std::string* target, std::vector<std::string> choices,
                       std::string help) {
  std::string unit = absl::StrJoin(choices, "|");
  Add({.name = std::move(name),
       .target = target,
       .unit = std::move(unit),
       .help = std::move(help),
       .choices = std::move(choices)});
}

void FlagTable::Bool(std::string name, bool* target, std::string help) {
  Add({.name = std::move(name), .target = target, .unit = "", .help = std::move(help)});
}

void FlagTable::Int(std::string name, int* target, IntRange range, std::string unit,
                    std::string help) {
  Add({.name = std::move(name),
       .target = target,
       .unit = std::move(unit),
       .help = std::move(help),
       .int_range = range});
}

void FlagTable::Int64(std::string name, int64_t* target, IntRange range, std::string unit,
                      std::string help) {
  Add({.name = std::move(name),
       .target = target,
       .unit = std::move(unit),
       .help = std::move(help),
       .int_range = range});
}

void FlagTable::Double(std::string name, double* target, DoubleRange range, std::string unit,
                       std::string help) {
  Add({.name = std::move(name),
       .target = target,
       .unit = std::move(unit),
       .help = std::move(help),
       .double_range = range});
}

void FlagTable::Duration(std::string name, absl::Duration* target, std::string help) {
  Add({.name = std::move(name), .target = target, .unit = "duration", .help = std::move(help)});
}

void FlagTable::Positional(std::string name, std::vector<std::string>* target, std::string help) {
  positional_name_ = std::move(name);
  positional_ = target;
  positional_help_ = std::move(help);
}

FlagTable::Flag* FlagTable::Find(absl::string_view name) {
  const auto found = std::find_if(flags_.begin(), flags_.end(),
                                  [&](const Flag& flag) { return flag.name == name; });
  return found == flags_.end() ? nullptr : &*found;
}

absl::Status FlagTable::Set(Flag& flag, absl::string_view value, absl::string_view source) {
  if (auto** target = std::get_if<std::string*>(&flag.target)) {
    if (!flag.choices.empty() && std::count(flag.choices.begin(), flag.choices.end(), value) == 0) {
      return BadValue(source, flag.name, value,
                      absl::StrCat("one of ", absl::StrJoin(flag.choices, ", ")));
    }
    **target = std::string(value);
  } else if (auto** list = std::get_if<std::vector<std::string>*>(&flag.target)) {
    **list = absl::StrSplit(value, ',', absl::SkipEmpty());
  } else if (auto** boolean = std::get_if<bool*>(&flag.target)) {
    if (!absl::SimpleAtob(value, *boolean))
      return BadValue(source, flag.name, value, "true or false");
  } else if (auto** duration = std::get_if<absl::Duration*>(&flag.target)) {
    absl::Duration parsed;
    if (!absl::ParseDuration(value, &parsed) || parsed < absl::ZeroDuration()) {
      return BadValue(source, flag.name, value, "a duration such as 250ms, 1.5s or 2m");
    }
    **duration = parsed;
  } else if (auto** real = std::get_if<double*>(&flag.target)) {
    double parsed;
    const DoubleRange& range = flag.double_range;
    if (!absl::SimpleAtod(value, &parsed) || !(parsed >= range.min && parsed <= range.max)) {
      return BadValue(source, flag.name, value,
                      absl::StrCat("a number in ", range.min, "..", range.max));
    }
    **real = parsed;
  } else {
    int64_t parsed;
    const IntRange& range = flag.int_range;
    if (!absl::SimpleAtoi(value, &parsed) || parsed < range.min || parsed > range.max) {
      return BadValue(source, flag.name, value, RangeText(range.min, range.max));
    }
    if (auto** narrow = std::get_if<int*>(&flag.target)) {
      **narrow = static_cast<int>(parsed);
    } else {
      **std::get_if<int64_t*>(&flag.target) = parsed;
    }
  }
  return absl::OkStatus();
}

absl::Status FlagTable::ParseYaml(absl::string_view text, const std::string& source) {
  // yaml-cpp reports by exception; this is the only place that sees them.
  try {
    const YAML::Node root = YAML::Load(std::string(text));
    if (root.IsNull()) return absl::OkStatus();
    if (!root.IsMap())
      return absl::InvalidArgumentError(
          absl::StrCat(source, ": must be a map of flag names to values"));
    std::set<std::string> seen;
    for (const auto& entry : root) {
      const std::string name = entry.first.as<std::string>();
      const std::string where = absl::StrCat(source, ":", entry.first.Mark().line + 1, ": ");
      Flag* flag = Find(name);
      if (flag == nullptr || name == "config") {
        return absl::InvalidArgumentError(absl::StrCat(where, "unknown key ", name));
      }
      if (!seen.insert(name).second)
        return absl::InvalidArgumentError(absl::StrCat(where, "doubled key ", name));
      const YAML::Node& value = entry.second;
      const bool is_list = std::holds_alternative<std::vector<std::string>*>(flag->target);
      if (value.IsSequence() && is_list) {
        auto& list = *std::get<std::vector<std::string>*>(flag->target);
        list.clear();
        for (const auto& item : value) list.push_back(item.as<std::string>());
      } else if (value.IsScalar()) {
        RETURN_IF_ERROR(Set(*flag, value.as<std::string>(), where));
      } else {
        return BadValue(where, name, "(nested)", is_list ? "a list or a scalar" : "a scalar");
      }
    }
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": ", error.what()));
  }
  return absl::OkStatus();
}

absl::Status FlagTable::ReadConfigFile() {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFile(config_file_, limits::kConfigBytesMax, "config"));
  return ParseYaml(text, config_file_);
}

absl::StatusOr<ParseOutcome> FlagTable::ParseFlags(const std::vector<absl::string_view>& words) {
  bool only_positional = false;
  for (size_t i = 0; i < words.size(); ++i) {
    absl::string_view word = words[i];
    if (only_positional || !absl::StartsWith(word, "--")) {
      if (word == "-h" && !only_positional) return ParseOutcome::kHelp;
      if (positional_ == nullptr)
        return absl::InvalidArgumentError(
            absl::StrCat("unexpected argument ", word, "; see --help"));
      positional_->emplace_back(word);
      continue;
    }
    word.remove_prefix(2);
    if (word.empty()) {
      only_positional = true;
      continue;
    }
    if (word == "help") return ParseOutcome::kHelp;
    const size_t equals = word.find('=');
    const absl::string_view name = word.substr(0, equals);
    Flag* flag = Find(name);
    if (flag == nullptr && absl::StartsWith(name, "no-") && equals == absl::string_view::npos) {
      flag = Find(name.substr(3));
      if (flag != nullptr && std::holds_alternative<bool*>(flag->target)) {
        *std::get<bool*>(flag->target) = false;
        continue;
      }
      flag = nullptr;
    }
    if (flag == nullptr)
      return absl::InvalidArgumentError(absl::StrCat("unknown flag --", name, "; see --help"));
    absl::string_view value;
    if (equals != absl::string_view::npos) {
      value = word.substr(equals + 1);
    } else if (std::holds_alternative<bool*>(flag->target)) {
      value = "true";
    } else if (i + 1 < words.size()) {
      value = words[++i];
    } else {
      return absl::InvalidArgumentError(absl::StrCat("--", name, ": value missing"));
    }
    RETURN_IF_ERROR(Set(*flag, value, "--"));
  }
  return ParseOutcome::kRun;
}

absl::StatusOr<ParseOutcome> FlagTable::Parse(int argc, const char* const* argv) {
  const std::vector<absl::string_view> words(argv + std::min(argc, 1), argv + argc);
  // The file lies under the flags, so it is found, applied, and then every flag is set again on top
  // of it.
  ASSIGN_OR_RETURN(const ParseOutcome outcome, ParseFlags(words));
  if (outcome == ParseOutcome::kHelp || config_file_.empty()) return outcome;
  RETURN_IF_ERROR(ReadConfigFile());
  if (positional_ != nullptr) positional_->clear();
  return ParseFlags(words);
}

std::string FlagTable::Help() const {
  std::string text = absl::StrCat(program_, ": ", summary_, "\n\nusage: ", program_, " [flags]");
  if (positional_ != nullptr)
    absl::StrAppend(&text, " ", positional_name_, "\n\n  ", positional_name_, "\n      ",
                    positional_help_);
  absl::StrAppend(&text, "\n\n");
  for (const Flag& flag : flags_) {
    const bool is_bool = std::holds_alternative<bool*>(flag.target);
    const bool is_int =
        std::holds_alternative<int*>(flag.target) || std::holds_alternative<int64_t*>(flag.target);
    absl::StrAppend(&text, "  --", is_bool ? "[no-]" : "", flag.name,
                    is_bool || flag.unit.empty() ? "" : absl::StrCat("=<", flag.unit, ">"),
                    "\n      ", flag.help, " (default ", flag.default_text);
    if (is_int) absl::StrAppend(&text, "; ", flag.int_range.min, "..", flag.int_range.max);
    absl::StrAppend(&text, ")\n");
  }
  absl::StrAppend(&text, "  --help\n      This text\n");
  return text;
}

absl::StatusOr<std::string> ReadFile(const std::string& path, size_t bytes_max,
                                     absl::string_view what) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(what, "=", path, ": cannot open"));
  constexpr size_t kStepBytes = 1u << 16;
  std::string text;
  while (file && text.size() <= bytes_max) {
    const size_t before = text.size();
    text.resize(before + kStepBytes);
    file.read(text.data() + before, kStepBytes);
    text.resize(before + static_cast<size_t>(file.gcount()));
  }
  if (file.bad()) return absl::DataLossError(absl::StrCat(what, "=", path, ": cannot read"));
  if (text.size() > bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, "=", path, ": larger than ", bytes_max, " bytes"));
  }
  return text;
}

}  // namespace ultraspeed
