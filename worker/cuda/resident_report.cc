// From the stamps of the last round to a table by kind of phase and a timeline of all blocks.
#include <algorithm>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/cuda/cuda_executor.h"
#include "worker/cuda/device.h"

namespace ultraspeed::worker {
namespace {

namespace resident = kernels::cuda::resident;
using cuda::PhaseLabel;
using cuda::ResidentTimes;

struct Stamps {
  const ResidentTimes& times;

  uint64_t At(int block, size_t phase, int stamp) const {
    const size_t row = static_cast<size_t>(block) * times.phases.size() + phase;
    return times.trace[row * resident::kTraceStamps + static_cast<size_t>(stamp)];
  }
  // When the block was done with the phase; 0: it had no part in it.
  uint64_t End(int block, size_t phase) const {
    return std::max(At(block, phase, resident::kTraceWorkDone),
                    At(block, phase, resident::kTraceFinished));
  }
  uint64_t LastEnd(size_t phase) const {
    uint64_t end = 0;
    for (int b = 0; b < times.num_blocks; ++b) end = std::max(end, End(b, phase));
    return end;
  }
  uint64_t FirstBegin() const {
    uint64_t begin = ~uint64_t{0};
    for (int b = 0; b < times.num_blocks; ++b)
      begin = std::min(begin, At(b, 0, resident::kTraceBegin));
    return begin;
  }
};

// `experts`: that a phase reads.
std::vector<ResidentPhaseTimes> PhaseTable(const Stamps& stamps, double experts) {
  const ResidentTimes& times = stamps.times;
  constexpr auto kLabels = static_cast<size_t>(PhaseLabel::kCount);
  std::vector<ResidentPhaseTimes> table(kLabels * resident::kBandsMax);
  uint64_t before = stamps.FirstBegin();
  for (size_t p = 0; p < times.phases.size(); ++p) {
    const resident::Phase& phase = times.phases[p];
    const size_t band = static_cast<size_t>(phase.band);
    ResidentPhaseTimes& row = table[phase.label * resident::kBandsMax + band];
    row.name = Name(static_cast<PhaseLabel>(phase.label));
    if (band > 0) absl::StrAppend(&row.name, ", band ", band + 1);
    row.count += 1;
    row.bytes += cuda::PhaseBytes(phase, experts);
    const uint64_t end = std::max(before, stamps.LastEnd(p));
    row.ms += static_cast<double>(end - before) * 1e-6;
    before = end;
    double waited = 0;
    int num_waits = 0;
    for (int b = 0; b < times.num_blocks; ++b) {
      const uint64_t begin = stamps.At(b, p, resident::kTraceBegin);
      const uint64_t ready = stamps.At(b, p, resident::kTraceInputReady);
      if (ready <= begin) continue;
      waited += static_cast<double>(ready - begin) * 1e-6;
      ++num_waits;
    }
    if (num_waits > 0) row.wait_ms += waited / num_waits;
  }
  table.erase(std::remove_if(table.begin(), table.end(),
                             [](const ResidentPhaseTimes& row) { return row.count == 0; }),
              table.end());
  return table;
}

absl::Status WriteTrace(const Stamps& stamps, const std::string& path) {
  std::ofstream out(path);
  const uint64_t begin = stamps.FirstBegin();
  const auto microseconds = [&](uint64_t ns) { return static_cast<double>(ns - begin) * 1e-3; };
  out << "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n";
  const char* separator = "";
  const auto event = [&](const char* name, int block, const char* role, uint64_t from,
                         uint64_t to) {
    if (from < begin || to <= from) return;
    out << separator
        << absl::StrFormat(
               "{\"ph\":\"X\",\"name\":\"%s\",\"pid\":%d,\"tid\":\"%s\",\"ts\":%.3f,\"dur\":%.3f}",
               name, block, role, microseconds(from), static_cast<double>(to - from) * 1e-3);
    separator = ",\n";
  };
  for (int b = 0; b < stamps.times.num_blocks; ++b) {
    for (size_t p = 0; p < stamps.times.phases.size(); ++p) {
      const char* const name = Name(static_cast<PhaseLabel>(stamps.times.phases[p].label));
      const uint64_t from = stamps.At(b, p, resident::kTraceBegin);
      const uint64_t ready = stamps.At(b, p, resident::kTraceInputReady);
      const uint64_t done = stamps.At(b, p, resident::kTraceWorkDone);
      event("wait", b, "consumers", from, ready);
      event(name, b, "consumers", std::max(from, ready), done);
      event(name, b, "finishers", done, stamps.At(b, p, resident::kTraceFinished));
    }
  }
  out << "\n]}\n";
  out.close();
  if (!out) return absl::UnavailableError(absl::StrCat("cannot write the trace to ", path));
  return absl::OkStatus();
}

}  // namespace

void UseResidentEngine(ModelExecutor& executor, bool use) {
  if (auto* const on_gpu = dynamic_cast<cuda::GpuExecutor*>(&executor); on_gpu != nullptr)
    on_gpu->UseResident(use);
}

void ForceDistinctExperts(ModelExecutor& executor, int a_layer) {
  if (auto* const on_gpu = dynamic_cast<cuda::GpuExecutor*>(&executor); on_gpu != nullptr)
    on_gpu->ForceDistinctExperts(a_layer);
}

absl::StatusOr<ResidentRoundTimes> MeasureResidentRounds(ModelExecutor& executor,
                                                         const Round& round,
                                                         const ResidentRounds& what) {
  auto* const on_gpu = dynamic_cast<cuda::GpuExecutor*>(&executor);
  if (on_gpu == nullptr || on_gpu->resident() == nullptr) {
    return absl::FailedPreconditionError("the executor has no resident engine for this shape");
  }
  const ResidentTimes times =
      on_gpu->resident()->Measure(round, what.num_rounds, what.verified_rows);
  const Stamps stamps{times};
  ResidentRoundTimes result;
  result.round_ms = times.round_ms;
  result.num_blocks = times.num_blocks;
  int num_moe_layers = 0, num_moe_phases = 0;
  for (const resident::Phase& phase : times.phases) {
    if (phase.kind != resident::PhaseKind::kMoeUp) continue;
    num_moe_layers += phase.band == 0;
    num_moe_phases += 1;
  }
  const double experts = times.num_experts;
  result.expert_reads = num_moe_layers == 0 ? 0 : experts / num_moe_layers;
  result.phases = PhaseTable(stamps, num_moe_phases == 0 ? 0 : experts / num_moe_phases);
  for (const ResidentPhaseTimes& row : result.phases) result.bytes += row.bytes;
  if (!what.trace_file.empty()) {
    if (absl::Status status = WriteTrace(stamps, what.trace_file); !status.ok()) return status;
  }
  return result;
}

}  // namespace ultraspeed::worker
