// Choosing tokens for a verified block of 8, over a rank's share of the vocabulary and over all of
// it. The logits stay in the L2, where the head leaves them in a round; the bound is still that of
// memory.
//
// Logits are uniform over 30, so that top-p of 0.95 keeps about a tenth of the vocabulary: more
// than real text does, which makes it the slower case.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "kernels/bench/cuda_bench.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/synthetic.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kRows = 8, kCalls = 64;

void Measure(const Bench& bench, const char* what, const SamplingSpec& spec, int vocabulary) {
  const size_t values = static_cast<size_t>(vocabulary) * kRows;
  std::vector<SampleRow> rows(kRows, {.spec = spec, .position = 0, .want_logprob = 0});
  for (int i = 0; i < kRows; ++i) rows[static_cast<size_t>(i)].position = i;
  const Buffer logits = bench.Allocate(values * sizeof(float)),
               d_rows = bench.Allocate(kRows * sizeof(SampleRow)),
               tokens = bench.Allocate(kRows * sizeof(int32_t)),
               logprobs = bench.Allocate(kRows * sizeof(float)),
               workspace = bench.Allocate(SampleWorkspaceBytes(kRows, vocabulary));
  FillUniform(logits.as<float>(), values, 0.0f, 15.0f, 5, bench.stream());
  bench.Upload(d_rows, rows.data(), kRows * sizeof(SampleRow));
  const double seconds = bench.SecondsOf(kCalls, [&](int) {
    Sample(logits.as<float>(), kRows, vocabulary, vocabulary, -1, d_rows.as<SampleRow>(),
           tokens.as<int32_t>(), logprobs.as<float>(), workspace.as<void>(), bench.stream());
  });
  char name[64];
  std::snprintf(name, sizeof(name), "sample %s V %d", what, vocabulary);
  bench.Report(name, kRows, seconds, static_cast<double>(values * sizeof(float)), 0);
}

}  // namespace

void MeasureSampling(const Bench& bench) {
  for (int vocabulary : {19072, 152576}) {
    Measure(bench, "greedy", {.temperature = 0.0f, .top_k = 0, .top_p = 1.0f, .seed = 1},
            vocabulary);
    Measure(bench, "temperature 1", {.temperature = 1.0f, .top_k = 0, .top_p = 1.0f, .seed = 1},
            vocabulary);
    Measure(bench, "top_p 0.95", {.temperature = 1.0f, .top_k = 0, .top_p = 0.95f, .seed = 1},
            vocabulary);
  }
}

}  // namespace ultraspeed::kernels::cuda
