// What drafting costs on this machine, measured before the first request.
//
// Called once by main, before the engine owns the executor. Where weights stream from memory a
// drafted row is nearly free; where they sit in a cache it costs arithmetic. Guessing wrong makes
// speculation slower than plain decoding, so it is measured.
#pragma once

#include "common/clock.h"
#include "worker/executor.h"
#include "worker/speculation.h"

namespace ultraspeed::worker {

// Runs some dozen rounds of made-up sequences, short ones and long ones where there is room for
// them, one in slot 0 and, where a round may have several blocks of rows, one in slot 1 beside it,
// and leaves the slots reset. Zero cost if the model has no drafter.
DraftCosts MeasureDraftCosts(Executor& executor, const Clock& clock);

}  // namespace ultraspeed::worker
