#include "common/uuid.h"

#include <gtest/gtest.h>

#include <set>

namespace ultraspeed {
namespace {

TEST(UuidTest, HasVersionVariantAndTime) {
  const FakeClock clock(absl::FromUnixMillis(0x0123456789AB));
  const std::string id = NewUuidV7(clock);
  EXPECT_TRUE(IsUuid(id)) << id;
  EXPECT_EQ(id.substr(0, 15), "01234567-89ab-7");
  EXPECT_NE(std::string("89ab").find(id[19]), std::string::npos) << id;
}

TEST(UuidTest, SortsByTimeAndNeverRepeats) {
  FakeClock clock;
  std::set<std::string> ids;
  std::string last;
  for (int i = 0; i < 1000; ++i) {
    const std::string id = NewUuidV7(clock);
    EXPECT_LT(last, id);
    EXPECT_TRUE(ids.insert(id).second);
    last = id;
    clock.Advance(absl::Milliseconds(1));
  }
}

TEST(UuidTest, RecognisesUuids) {
  EXPECT_TRUE(IsUuid("01234567-89AB-cdef-0123-456789abcdef"));
  for (const char* text :
       {"", "x", "01234567-89ab-cdef-0123-456789abcde", "01234567x89ab-cdef-0123-456789abcdef",
        "g1234567-89ab-cdef-0123-456789abcdef"}) {
    EXPECT_FALSE(IsUuid(text)) << text;
  }
}

TEST(FakeClockTest, StandsStillUntilAdvanced) {
  FakeClock clock;
  const absl::Time start = clock.Now();
  EXPECT_EQ(clock.Now(), start);
  clock.Advance(absl::Seconds(3));
  EXPECT_EQ(clock.Now() - start, absl::Seconds(3));
  EXPECT_EQ(clock.Monotonic(), absl::Seconds(3));
}

}  // namespace
}  // namespace ultraspeed
