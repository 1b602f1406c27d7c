#include "client/admin_table.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace ultraspeed::client {
namespace {

bool IsNumber(const std::string& cell) {
  return !cell.empty() &&
         (absl::ascii_isdigit(static_cast<unsigned char>(cell[0])) || cell[0] == '$') &&
         cell.find_first_not_of("$0123456789.") == std::string::npos;
}

}  // namespace

std::string Table::Text() const {
  std::vector<size_t> widths(rows_[0].size(), 0);
  std::vector<bool> is_number(widths.size(), rows_.size() > 1);
  for (size_t i = 0; i < rows_.size(); ++i) {
    for (size_t column = 0; column < widths.size(); ++column) {
      const std::string& cell = rows_[i][column];
      widths[column] = std::max(widths[column], cell.size());
      if (i > 0 && !cell.empty() && !IsNumber(cell)) is_number[column] = false;
    }
  }
  std::string text;
  for (const auto& row : rows_) {
    std::string line;
    for (size_t column = 0; column < widths.size(); ++column) {
      const std::string blanks(widths[column] - row[column].size(), ' ');
      absl::StrAppend(&line, column > 0 ? "  " : "", is_number[column] ? blanks : "", row[column],
                      is_number[column] ? "" : blanks);
    }
    absl::StripTrailingAsciiWhitespace(&line);
    absl::StrAppend(&text, line, "\n");
  }
  return text;
}

}  // namespace ultraspeed::client
