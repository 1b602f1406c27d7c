#include "common/grammar/string_formats.h"

#include "absl/strings/str_cat.h"

namespace ultraspeed::grammar {
namespace {

// RFC 3339. Years from 1 on, as programs have them; no leap seconds.
std::string Date() {
  const absl::string_view year = R"((\d{3}[1-9]|\d\d[1-9]0|\d[1-9]00|[1-9]000))";
  const absl::string_view leap_year =
      R"((\d\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00))";
  const absl::string_view day =
      R"(((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8])))";
  return absl::StrCat("(", year, "-", day, "|", leap_year, "-02-29)");
}
std::string Time() {
  return R"(([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d))";
}

// RFC 3339, appendix A, of at most nine digits each.
std::string Duration() {
  const absl::string_view time =
      R"(T(\d{1,9}H(\d{1,9}M(\d{1,9}S)?)?|\d{1,9}M(\d{1,9}S)?|\d{1,9}S))";
  return absl::StrCat(R"(P(\d{1,9}W|)", time,
                      R"(|(\d{1,9}D|\d{1,9}M(\d{1,9}D)?|\d{1,9}Y(\d{1,9}M(\d{1,9}D)?)?)()", time,
                      ")?)");
}

// RFC 1123: letters, digits and inner hyphens; a label may have 63 of them and a name 253, of which
// these keep clear.
constexpr absl::string_view kLabel = "[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?";
std::string Hostname() { return absl::StrCat(kLabel, R"((\.)", kLabel, "){0,6}"); }

// RFC 5321: local parts without quotes, of up to 64 characters; a domain that is a name.
std::string Email() {
  const absl::string_view word = "[A-Za-z0-9_+-]{1,20}";
  const absl::string_view top = "[A-Za-z]{2,20}";
  return absl::StrCat(word, R"((\.)", word, R"(){0,2}@()", kLabel, R"(\.){1,4})", top);
}

std::string Ipv4() {
  const absl::string_view byte = R"((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d))";
  return absl::StrCat(byte, R"((\.)", byte, "){3}");
}

// RFC 4291: eight groups, or fewer with one "::".
std::string Ipv6() {
  const absl::string_view group = "[0-9a-fA-F]{1,4}";
  std::string all = absl::StrCat("((", group, ":){7}", group);
  for (int before = 0; before <= 7; ++before) {
    const int after = 7 - before;  // at most
    if (before > 0) absl::StrAppend(&all, "|", group, "(:", group, "){", before - 1, "}::");
    if (before == 0) absl::StrAppend(&all, "|::");
    if (after > 0) absl::StrAppend(&all, "(", group, "(:", group, "){0,", after - 1, "})?");
  }
  return all + ")";
}

// RFC 9562.
std::string Uuid() {
  const absl::string_view hex = "[0-9a-fA-F]";
  return absl::StrCat(hex, "{8}(-", hex, "{4}){3}-", hex, "{12}");
}

}  // namespace

std::optional<std::string> PatternOfFormat(absl::string_view format) {
  const auto whole = [](absl::string_view pattern) { return absl::StrCat("^(", pattern, ")$"); };
  if (format == "date-time") return whole(absl::StrCat(Date(), "T", Time()));
  if (format == "date") return whole(Date());
  if (format == "time") return whole(Time());
  if (format == "duration") return whole(Duration());
  if (format == "email") return whole(Email());
  if (format == "hostname") return whole(Hostname());
  if (format == "ipv4") return whole(Ipv4());
  if (format == "ipv6") return whole(Ipv6());
  if (format == "uuid") return whole(Uuid());
  return std::nullopt;
}

}  // namespace ultraspeed::grammar
