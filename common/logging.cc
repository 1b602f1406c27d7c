#include "common/logging.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/limits.h"

namespace ultraspeed {
namespace {

std::atomic<LogLevel> minimum_level{LogLevel::kInfo};

const char* Name(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "unknown";
}

// The sink locks per line. Leaked on purpose: threads may log until the process ends.
spdlog::logger& Logger() {
  static spdlog::logger* logger = [] {
    auto* created =
        new spdlog::logger("ultraspeed", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    created->set_pattern("%v");
    created->set_level(spdlog::level::trace);
    created->flush_on(spdlog::level::trace);
    return created;
  }();
  return *logger;
}

// Length of the valid UTF-8 character at `text`'s start, 0 when there is none.
size_t Utf8Length(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  size_t length = lead < 0x80                   ? 1
                  : lead >= 0xC2 && lead < 0xE0 ? 2
                  : lead >= 0xE0 && lead < 0xF0 ? 3
                  : lead >= 0xF0 && lead < 0xF5 ? 4
                                                : 0;
  if (length == 0 || length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const bool overlong = (lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xF0 && byte(1) < 0x90);
  const bool surrogate = lead == 0xED && byte(1) >= 0xA0;
  const bool too_large = lead == 0xF4 && byte(1) >= 0x90;
  return overlong || surrogate || too_large ? 0 : length;
}

struct ValueWriter {
  std::string* out;
  void operator()(absl::string_view v) const {
    out->push_back('"');
    AppendJsonEscaped(v.substr(0, limits::kLogValueBytesMax), out);
    out->push_back('"');
  }
  void operator()(bool v) const { out->append(v ? "true" : "false"); }
  void operator()(double v) const {
    // JSON has neither NaN nor infinity.
    out->append(std::isfinite(v) ? absl::StrFormat("%.9g", v) : "null");
  }
  void operator()(int64_t v) const { absl::StrAppend(out, v); }
  void operator()(uint64_t v) const { absl::StrAppend(out, v); }
};

}  // namespace

void AppendJsonEscaped(absl::string_view text, std::string* out) {
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    const size_t length = Utf8Length(text.substr(i));
    if (length == 0) {
      out->append("\xEF\xBF\xBD");
      ++i;
    } else if (length > 1) {
      absl::StrAppend(out, text.substr(i, length));
      i += length;
    } else {
      switch (c) {
        case '"':
          out->append("\\\"");
          break;
        case '\\':
          out->append("\\\\");
          break;
        case '\n':
          out->append("\\n");
          break;
        case '\r':
          out->append("\\r");
          break;
        case '\t':
          out->append("\\t");
          break;
        default:
          if (static_cast<unsigned char>(c) < 0x20) {
            absl::StrAppendFormat(out, "\\u%04x", static_cast<unsigned>(c));
          } else {
            out->push_back(c);
          }
      }
      ++i;
    }
  }
}

std::string FormatLogLine(absl::string_view time, LogLevel level, absl::string_view event,
                          std::initializer_list<LogField> fields) {
  std::string line = "{\"time\":\"";
  AppendJsonEscaped(time, &line);
  absl::StrAppend(&line, "\",\"level\":\"", Name(level), "\",\"event\":\"");
  AppendJsonEscaped(event, &line);
  line.push_back('"');
  for (const LogField& field : fields) {
    line.append(",\"");
    AppendJsonEscaped(field.key, &line);
    line.append("\":");
    std::visit(ValueWriter{&line}, field.value);
  }
  line.push_back('}');
  return line;
}

void SetLogLevel(LogLevel level) { minimum_level.store(level, std::memory_order_relaxed); }

void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields) {
  if (level < minimum_level.load(std::memory_order_relaxed)) return;
  const std::string time =
      absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", absl::Now(), absl::UTCTimeZone());
  Logger().info("{}", FormatLogLine(time, level, event, fields));
}

}  // namespace ultraspeed
