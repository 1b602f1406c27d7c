// Between SqlValue and the types of the store. Columns are read by position: a Reader walks one row
// from left to right, so a read lists its fields in the order of its SELECT.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "router/sql_database.h"

namespace ultraspeed::router {

inline SqlValue ToSql(int64_t value) { return value; }
inline SqlValue ToSql(absl::string_view value) { return std::string(value); }
inline SqlValue ToSql(absl::Time value) { return absl::ToUnixMillis(value); }
template <typename Enum>
requires std::is_enum_v<Enum> SqlValue ToSql(Enum value) { return static_cast<int64_t>(value); }
template <typename T>
SqlValue ToSql(const std::optional<T>& value) {
  return value ? ToSql(*value) : SqlValue();
}

// REQUIRES, of every method: the column has the type that is asked for; NULL only where optional.
class RowReader {
 public:
  explicit RowReader(const SqlRow& row) : row_(row) {}

  bool AtNull() const { return std::holds_alternative<std::monostate>(row_[next_]); }
  int64_t Whole() { return std::get<int64_t>(row_[next_++]); }
  std::string Text() { return std::get<std::string>(row_[next_++]); }
  absl::Time Time() { return absl::FromUnixMillis(Whole()); }
  template <typename Enum>
  Enum As() {
    return static_cast<Enum>(Whole());
  }
  std::optional<int64_t> OptionalWhole() {
    if (!AtNull()) return Whole();
    ++next_;
    return std::nullopt;
  }
  std::optional<absl::Time> OptionalTime() {
    const std::optional<int64_t> ms = OptionalWhole();
    if (!ms) return std::nullopt;
    return absl::FromUnixMillis(*ms);
  }

 private:
  const SqlRow& row_;
  size_t next_ = 0;
};

}  // namespace ultraspeed::router
