// One line of JSON per event on standard error: {"time":..,"level":..,"event":..,<fields>}. Never a
// prompt, an output text or a key.
//
// Thread: any; a line is written whole. Strings over limits::kLogValueBytesMax are cut.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <variant>

#include "absl/strings/string_view.h"

namespace ultraspeed {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarning, kError };

struct LogField {
  absl::string_view key;
  std::variant<absl::string_view, int64_t, uint64_t, double, bool> value;

  LogField(absl::string_view k, absl::string_view v) : key(k), value(v) {}
  LogField(absl::string_view k, const std::string& v) : key(k), value(absl::string_view(v)) {}
  LogField(absl::string_view k, const char* v) : key(k), value(absl::string_view(v)) {}
  LogField(absl::string_view k, bool v) : key(k), value(v) {}
  template <std::floating_point T>
  LogField(absl::string_view k, T v) : key(k), value(static_cast<double>(v)) {}
  template <std::signed_integral T>
  LogField(absl::string_view k, T v) : key(k), value(static_cast<int64_t>(v)) {}
  template <std::unsigned_integral T>
  requires(!std::same_as<T, bool>) LogField(absl::string_view k, T v)
      : key(k), value(static_cast<uint64_t>(v)) {}
};

// Log(LogLevel::kInfo, "worker.ready", {{"port", port}, {"device", device}});
void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields = {});

// Lines below `level` are dropped. Default kInfo.
void SetLogLevel(LogLevel level);

// The line that Log would write, without its line break; `time` is RFC 3339 in UTC.
std::string FormatLogLine(absl::string_view time, LogLevel level, absl::string_view event,
                          std::initializer_list<LogField> fields);

// Appends `text` as the inside of a JSON string (no quotes): escapes quotes, backslashes, control
// characters; bytes that are not UTF-8 become U+FFFD.
void AppendJsonEscaped(absl::string_view text, std::string* out);

}  // namespace ultraspeed
