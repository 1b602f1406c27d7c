#include "router/ledger.h"

namespace ultraspeed::router {

int MonthOf(absl::Time time) {
  const absl::CivilMonth month = absl::ToCivilMonth(time, absl::UTCTimeZone());
  return static_cast<int>(month.year()) * 100 + month.month();
}

}  // namespace ultraspeed::router
