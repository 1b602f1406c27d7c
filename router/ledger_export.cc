#include "router/ledger_export.h"

#include <boost/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace ultraspeed::router {
namespace {

using Column = std::pair<const char*, boost::json::value>;

std::string TimeText(absl::Time time) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", time, absl::UTCTimeZone());
}

boost::json::value Text(absl::string_view text) {
  return boost::json::string(boost::json::string_view(text.data(), text.size()));
}

// Names and order of the file.
std::vector<Column> ColumnsOf(const LedgerOpening& opening, const LedgerClosing& closing) {
  return {{"request_id", Text(opening.request_id)},
          {"tenant_id", Text(opening.tenant_id)},
          {"key_id", Text(opening.key_id)},
          {"model", Text(opening.model)},
          {"tier", Text(TierName(opening.tier))},
          {"billed_tier", Text(TierName(closing.billed_tier))},
          {"billed_reason", Text(closing.billed_reason)},
          {"price_version", closing.price_version},
          {"prompt_tokens", closing.tokens.prompt},
          {"cached_tokens", closing.tokens.cached},
          {"completion_tokens", closing.tokens.completion},
          {"reasoning_tokens", closing.reasoning_tokens},
          {"draft_rounds", closing.draft_rounds},
          {"decode_us", closing.decode_us},
          {"finish_reason", Text(closing.finish_reason)},
          {"router_id", Text(opening.router_id)},
          {"worker", Text(closing.worker)},
          {"opened", Text(TimeText(opening.opened))},
          {"closed", Text(TimeText(closing.closed))},
          {"cost_nanodollars", closing.cost_nanodollars}};
}

std::string CsvField(const boost::json::value& value) {
  if (!value.is_string()) return boost::json::serialize(value);
  const std::string text(value.as_string().c_str(), value.as_string().size());
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  return absl::StrCat("\"", absl::StrReplaceAll(text, {{"\"", "\"\""}}), "\"");
}

}  // namespace

std::string LedgerExport::Head() const {
  if (format_ == ExportFormat::kJson) return "[";
  const std::vector<Column> columns = ColumnsOf({}, {});
  return absl::StrCat(absl::StrJoin(columns, ",",
                                    [](std::string* out, const Column& column) {
                                      absl::StrAppend(out, column.first);
                                    }),
                      "\r\n");
}

std::string LedgerExport::Row(const LedgerEntry& entry) {
  const std::vector<Column> columns = ColumnsOf(entry.opening, entry.closing.value());
  const bool is_first = !std::exchange(has_rows_, true);
  if (format_ == ExportFormat::kCsv) {
    return absl::StrCat(absl::StrJoin(columns, ",",
                                      [](std::string* out, const Column& column) {
                                        absl::StrAppend(out, CsvField(column.second));
                                      }),
                        "\r\n");
  }
  boost::json::object object;
  for (const Column& column : columns) object.emplace(column.first, column.second);
  return absl::StrCat(is_first ? "\n" : ",\n", boost::json::serialize(object));
}

std::string LedgerExport::Tail() const { return format_ == ExportFormat::kJson ? "\n]\n" : ""; }

}  // namespace ultraspeed::router
