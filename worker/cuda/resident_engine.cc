#include "worker/cuda/resident_engine.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>

#include "kernels/check.h"
#include "worker/cuda/check.h"
#include "worker/model_executor.h"

namespace ultraspeed::worker::cuda {
namespace {

namespace resident = kernels::cuda::resident;
using resident::AttentionTask;
using resident::Phase;

constexpr uint32_t kRoundsAhead = 4;
constexpr int kPollsPerStatus = 4096;

bool Same(const kernels::SamplingSpec& a, const kernels::SamplingSpec& b) {
  return a.temperature == b.temperature && a.top_k == b.top_k && a.top_p == b.top_p &&
         a.seed == b.seed;
}

bool WantsLogprobs(const SequenceStep& step) { return step.logprobs >= 0; }
bool IsHeld(const SequenceStep& step) { return step.constraint != nullptr; }

bool Drafts(const SequenceStep& step) { return step.wants_drafts(); }
bool BringsDrafts(const SequenceStep& step) { return step.brings_drafts(); }

template <typename Predicate>
bool AnyOf(const Round& round, Predicate predicate) {
  return std::any_of(round.steps.begin(), round.steps.end(), predicate);
}

int NumBands(const Round& round) {
  return (NumRows(round) + resident::kBandRows - 1) / resident::kBandRows;
}

// A round has one bound: the least of its steps that draft. 0: all drafts are verified.
float ReachMinOf(const Round& round) {
  if (!AnyOf(round, Drafts)) return 0;
  float reach_min = std::numeric_limits<float>::max();
  for (const SequenceStep& step : round.steps) {
    if (Drafts(step)) reach_min = std::min(reach_min, step.reach_min);
  }
  return reach_min;
}
bool WeighsDrafts(const Round& round) { return ReachMinOf(round) > 0; }

RoundKind KindOf(const Round& round) {
  return {.draft_passes =
              static_cast<int>(std::count_if(round.steps.begin(), round.steps.end(), Drafts)),
          .num_bands = NumBands(round),
          .whole_rows = Filters(round.steps.front().sampling) || AnyOf(round, WantsLogprobs)};
}

// The round's steps as the program's sequences: those that draft come first.
std::vector<size_t> ProgramOrder(const Round& round) {
  std::vector<size_t> order(round.steps.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_partition(order.begin(), order.end(),
                        [&](size_t i) { return Drafts(round.steps[i]); });
  return order;
}

uint32_t ReadShared(const uint32_t& word) { return __atomic_load_n(&word, __ATOMIC_ACQUIRE); }
void WriteShared(uint32_t& word, uint32_t value) {
  __atomic_store_n(&word, value, __ATOMIC_RELEASE);
}
void WriteShared(float& word, float value) { __atomic_store(&word, &value, __ATOMIC_RELEASE); }

}  // namespace

ResidentEngine::ResidentEngine(const ModelConfig& config, const ModelWeights& weights,
                               const TargetForward& target, const DrafterForward* drafter,
                               int64_t positions, int32_t banned_token, int vocabulary_used,
                               uint64_t wait_ns_max, const ResidentRanks& ranks, DeviceArena& arena,
                               cudaStream_t stream)
    : config_(config),
      weights_(weights),
      positions_(positions),
      banned_token_(banned_token),
      vocabulary_used_(vocabulary_used),
      wait_ns_max_(wait_ns_max),
      ranks_(ranks),
      stream_(stream),
      buffers_(config, weights.target, weights.drafter, positions, ranks, arena),
      masks_(vocabulary_used, arena.counting() ? nullptr : &buffers_.mail[0].num_masked, arena),
      joined_{this} {
  constexpr MemoryKind kKind = MemoryKind::kRoundData;
  num_blocks_ = arena.counting() ? 0 : resident::NumBlocks();
  const ResidentModel model{.config = config,
                            .target = weights.target,
                            .drafter = weights.drafter,
                            .target_caches = target,
                            .drafter_caches = drafter,
                            .buffers = buffers_,
                            .ranks = ranks,
                            .num_blocks = num_blocks_};
  const ResidentTasks tasks = {
      .append = arena.Upload(kKind, AppendTasks(model)),
      .chain = arena.Upload(kKind, std::vector<resident::ChainTask>{ChainTaskOf(model)})};
  const int passes_max = weights.drafter.layers.empty() ? 0 : resident::kDraftPassesMax;
  for (const RoundKind& kind : RoundKinds(passes_max)) {
    Rounds& rounds = RoundsOf(kind);
    rounds.schedule = BuildSchedule(model, kind, tasks);
    rounds.device_phases = arena.Upload(kKind, rounds.schedule.phases);
  }
  const size_t num_pages =
      kTurnsMax * resident::kSequencesMax * static_cast<size_t>(PagesOf(positions));
  device_pages_ = arena.Take<int32_t>(kKind, num_pages);
  if (arena.counting()) return;
  void* pinned = nullptr;
  CUDA_CHECK(cudaMallocHost(&pinned, sizeof(Pinned)));
  pinned_ = static_cast<Pinned*>(pinned);
  std::memset(pinned, 0, sizeof(Pinned));
  CUDA_CHECK(cudaMallocHost(&pinned, num_pages * sizeof(int32_t)));
  pinned_pages_ = static_cast<int32_t*>(pinned);
  collective_.num_ranks = ranks_.num_ranks;
  collective_.rank = ranks_.index;
  collective_.inbox = buffers_.inbox;
  collective_.inbox_rank_words = buffers_.inbox_rank_words;
  collective_.mail = buffers_.mail;
  collective_.embedding[ranks_.index] = weights_.target.embedding;
  collective_.logits[ranks_.index] = buffers_.logits;
  collective_.mail_push[0] = buffers_.mail;                     // of a single rank
  for (int r = 0; r < ranks_.num_ranks && ranks_.alone; ++r) {  // this rank fills all places
    collective_.push[r] = buffers_.inbox + static_cast<size_t>(r) * buffers_.inbox_rank_words;
    collective_.mail_push[r] = buffers_.mail + r;
  }
}

void ResidentEngine::Join(const std::vector<ResidentEngine*>& engines, NodeGroup& group) {
  KERNELS_CHECK(group.has_peers(), ==, true);
  for (size_t r = 0; r < engines.size(); ++r) {
    ResidentEngine& engine = *engines[r];
    KERNELS_CHECK(engine.ranks_.num_ranks, ==, static_cast<int>(engines.size()));
    KERNELS_CHECK(engine.ranks_.index, ==, static_cast<int>(r));
    KERNELS_CHECK(engine.num_blocks_, ==, engines[0]->num_blocks_);
    for (size_t other = 0; other < engines.size(); ++other) {
      const ResidentEngine& peer = *engines[other];
      engine.collective_.push[other] = peer.buffers_.inbox + r * peer.buffers_.inbox_rank_words;
      engine.collective_.mail_push[other] = peer.buffers_.mail + r;
      engine.collective_.embedding[other] = peer.weights_.target.embedding;
      engine.collective_.logits[other] = peer.buffers_.logits;
    }
    engine.group_ = &group;
  }
  engines[0]->joined_ = engines;
}

ResidentEngine::~ResidentEngine() {
  if (pinned_ == nullptr) return;
  Yield();
  CUDA_CHECK(cudaFreeHost(pinned_));
  CUDA_CHECK(cudaFreeHost(pinned_pages_));
}

bool ResidentEngine::Takes(const SequenceStep& step) const {
  return num_blocks_ > 0 && step.sample && step.num_tokens == 1 && step.logprobs <= 0 &&
         step.chosen_max() <= resident::kBandRows &&
         (!Drafts(step) || !weights_.drafter.layers.empty());
}

ResidentEngine::Finished ResidentEngine::Run(const Round& round) {
  if (AnyOf(round, BringsDrafts)) return RunGiven(round);
  if (!Continues(round)) Yield();
  if (!running_) Start(round);
  WriteShared(pinned_->control.log_reach_min, std::log(ReachMinOf(round)));
  constexpr int kStartsMax = 8;
  for (int starts = 0; !CompleteNext(round); ++starts) {
    KERNELS_CHECK(starts, <, kStartsMax);
    Yield();  // it has ended already: for want of a host, mostly
    Start(round);
  }
  return TakeNext(round);
}

ResidentEngine::Finished ResidentEngine::RunGiven(const Round& round) {
  Round drafted = round;
  for (SequenceStep& step : drafted.steps) step.num_drafts = 0;
  if (Continues(drafted)) {
    WriteShared(pinned_->control.stop, 1);
    if (CompleteNext(drafted)) return TakeNext(drafted);
  }
  return std::move(RunInTurns({round}).front());
}

uint32_t ResidentEngine::NextRecord() const { return session_.num_taken % resident::kResultsMax; }

bool ResidentEngine::CompleteNext(const Round& round) {
  return Complete(round, NextRecord(), session_.num_taken);
}

ResidentEngine::Finished ResidentEngine::TakeNext(const Round& round) {
  Finished finished = ResultOf(round, NextRecord());
  const std::vector<size_t> order = ProgramOrder(round);
  for (size_t m = 0; m < order.size(); ++m) {
    const std::vector<ChosenToken>& chosen = finished.result.sequences[order[m]].chosen;
    session_.members[m].position += static_cast<int64_t>(chosen.size());
    session_.members[m].anchor = chosen.back().token;
  }
  session_.num_taken += 1;
  WriteShared(pinned_->control.round_limit, session_.num_taken + 1 + kRoundsAhead);
  return finished;
}

std::vector<ResidentEngine::Finished> ResidentEngine::RunInTurns(const std::vector<Round>& rounds) {
  KERNELS_CHECK(rounds.size(), <=, size_t{kTurnsMax});
  Yield();
  Reset({.round_limit = 1, .stop = 1, .log_reach_min = 0});
  for (size_t i = 0; i < rounds.size(); ++i)
    Launch(rounds[i], static_cast<int>(i), [](resident::Program&) {});
  std::vector<Finished> finished;
  for (size_t i = 0; i < rounds.size(); ++i) {
    KERNELS_CHECK(Complete(rounds[i], static_cast<uint32_t>(i), 0), ==, true);
    finished.push_back(ResultOf(rounds[i], static_cast<uint32_t>(i)));
  }
  Finish();
  return finished;
}

ResidentEngine::Finished ResidentEngine::ResultOf(const Round& round, uint32_t index) const {
  const resident::RoundRecord& record = pinned_->results[index];
  Finished finished;
  finished.num_experts = record.num_experts;
  finished.result.sequences.resize(round.steps.size());
  int first_row = 0;
  const std::vector<size_t> order = ProgramOrder(round);
  for (size_t s = 0; s < order.size(); ++s) {
    const SequenceStep& step = round.steps[order[s]];
    SequenceResult& result = finished.result.sequences[order[s]];
    result.num_drafted = record.num_verified[s] - 1;
    result.took_own = step.brings_drafts();
    result.num_accepted = record.num_tokens[s] - 1;
    for (int row = first_row; row < first_row + record.num_tokens[s]; ++row) {
      result.chosen.push_back({.token = record.tokens[row],
                               .logprob = WantsLogprobs(step) ? record.logprobs[row] : 0.0f,
                               .top_tokens = {},
                               .top_logprobs = {}});
    }
    first_row += step.chosen_max();
  }
  return finished;
}

bool ResidentEngine::Continues(const Round& round) const {
  const std::vector<size_t> order = ProgramOrder(round);
  if (!running_ || order.size() != session_.members.size()) return false;
  return std::equal(
      order.begin(), order.end(), session_.members.begin(), [&](size_t i, const Member& member) {
        const SequenceStep& step = round.steps[i];
        return member.slot == step.slot && member.block == step.block &&
               member.position == step.computed && member.anchor == step.tokens[0] &&
               Same(member.sampling, step.sampling) &&
               member.wants_logprobs == WantsLogprobs(step) && member.is_held == IsHeld(step) &&
               session_.weighs_drafts == WeighsDrafts(round);
      });
}

resident::Program ResidentEngine::ProgramFor(const Round& round, int turn) {
  const RoundKind kind = KindOf(round);
  const ResidentSchedule& schedule = RoundsOf(kind).schedule;
  resident::Program program;
  program.phases = RoundsOf(kind).device_phases;
  program.num_phases = static_cast<int>(schedule.phases.size());
  program.of_round = schedule.of_round;
  program.counters = buffers_.words;
  std::copy(std::begin(schedule.totals), std::end(schedule.totals), std::begin(program.totals));
  program.hidden = config_.hidden;
  program.vocabulary = config_.vocabulary;
  program.first_token = ranks_.alone ? 0 : ranks_.index * config_.vocabulary;
  program.token_end = std::min(program.first_token + config_.vocabulary, vocabulary_used_);
  program.banned_token = banned_token_;
  program.mask_embedding = weights_.drafter.mask_embedding;
  program.choices = buffers_.choices;
  program.masses = buffers_.masses;
  program.weighs_drafts = WeighsDrafts(round);
  program.chains_drafts = kind.draft_passes > 0 && config_.drafter.markov_rank > 0;
  program.log_reach_min = std::log(ReachMinOf(round));
  program.whole_row = buffers_.whole_row;
  program.whole_row.in_use = kind.whole_rows;
  program.whole_row.filters = Filters(round.steps.front().sampling);
  program.whole_row.wants_logprobs = AnyOf(round, WantsLogprobs);
  program.whole_row.vocabulary_used = vocabulary_used_;
  if (AnyOf(round, IsHeld)) program.masks = masks_.ForProgram();
  constexpr size_t kWordsPerCounter = 32;
  uint32_t* const decision = buffers_.words + kWordsPerCounter * resident::kNumCounters;
  program.decision = reinterpret_cast<resident::Decision*>(decision);
  program.abort_word = decision + kWordsPerCounter;
  program.decision_counter = schedule.decision_counter;
  program.decision_target = schedule.decision_target;
  program.collective = collective_;
  program.rows = buffers_.rows;
  program.moe = buffers_.moe;
  program.draft_rows = kind.draft_passes > 0 ? config_.drafter.block_size : 0;
  program.num_sequences = 0;
  program.num_rows = 0;
  for (const size_t i : ProgramOrder(round)) {
    const SequenceStep& step = round.steps[i];
    KERNELS_CHECK(program.num_rows + step.chosen_max(), <=, resident::kRowsMax);
    KERNELS_CHECK(Filters(step.sampling), ==, program.whole_row.filters);
    const int s = program.num_sequences++;
    program.sequences[s] = {
        .first_row = program.num_rows,
        .block = step.chosen_max(),
        .position = step.computed,
        .position_end = std::min<int64_t>({int64_t{step.num_pages} * kPageTokens,
                                           config_.context_tokens, positions_ - kDraftBlockMax}),
        .slot = step.slot,
        .is_given = step.brings_drafts(),
        .pages = UploadPages(step, turn, s),
        .sampling = step.sampling};
    program.tokens[program.num_rows] = step.tokens[0];
    std::copy_n(step.drafts, step.num_drafts, program.tokens + program.num_rows + 1);
    for (int row = 0; row < step.chosen_max(); ++row)
      program.sequence_of[program.num_rows++] = static_cast<uint8_t>(s);
  }
  program.num_bands = kind.num_bands;
  program.forced_distinct_experts = forced_distinct_experts_;
  program.control = &pinned_->control;
  program.results = pinned_->results + turn;
  program.stuck = &pinned_->stuck;
  program.wait_ns_max = wait_ns_max_;
  return program;
}

const int32_t* ResidentEngine::UploadPages(const SequenceStep& step, int turn, int sequence) {
  const int64_t first = (turn * resident::kSequencesMax + sequence) * PagesOf(positions_);
  // A sequence may hold more pages than the model has positions for.
  const int64_t count = std::min<int64_t>(step.num_pages, PagesOf(positions_));
  std::copy_n(step.pages, count, pinned_pages_ + first);
  CUDA_CHECK(cudaMemcpyAsync(device_pages_ + first, pinned_pages_ + first,
                             static_cast<size_t>(count) * sizeof(int32_t), cudaMemcpyHostToDevice,
                             stream_));
  return device_pages_ + first;
}

void ResidentEngine::Reset(const resident::HostControl& control) {
  for (const ResidentEngine* const rank : joined_) {
    for (resident::RoundRecord& record : rank->pinned_->results) record.mark = record.rows_mark = 0;
    rank->pinned_->control = control;
  }
}

template <typename Change>
void ResidentEngine::Launch(const Round& round, int turn, Change change) {
  for (ResidentEngine* const rank : joined_) {
    const DeviceScope scope(rank->ranks_.index);
    resident::Program program = rank->ProgramFor(round, turn);
    change(program);
    const auto meet = [&] {
      if (rank->group_ != nullptr) rank->group_->Meet(rank->ranks_.index, rank->stream_);
    };
    // An inbox is emptied when no peer's kernel may still write to it, and written to when it is
    // empty.
    if (turn > 0) meet();
    if (program.chains_drafts) {
      CUDA_CHECK(cudaMemsetAsync(rank->buffers_.chain_words, 0,
                                 resident::NumChainWords(rank->num_blocks_) * sizeof(uint2),
                                 rank->stream_));
    }
    resident::Prepare(program, rank->stream_);
    meet();
    resident::Launch(program, rank->stream_);
  }
}

void ResidentEngine::Start(const Round& round) {
  Reset({.round_limit = 1 + kRoundsAhead, .stop = 0, .log_reach_min = std::log(ReachMinOf(round))});
  Launch(round, /*turn=*/0, [](resident::Program&) {});
  session_ = {.members = {}, .num_taken = 0, .weighs_drafts = WeighsDrafts(round)};
  for (const size_t i : ProgramOrder(round)) {
    const SequenceStep& step = round.steps[i];
    session_.members.push_back({.slot = step.slot,
                                .block = step.block,
                                .sampling = step.sampling,
                                .wants_logprobs = WantsLogprobs(step),
                                .is_held = IsHeld(step),
                                .position = step.computed,
                                .anchor = step.tokens[0]});
  }
  running_ = true;
}

bool ResidentEngine::Complete(const Round& round, uint32_t index, uint32_t number) {
  const resident::RoundRecord& record = pinned_->results[index];
  if (AnyOf(round, IsHeld)) {
    if (!Await(record.rows_mark, number + 1)) return false;
    SendMasks(round, record);
  }
  return Await(record.mark, number + 1);
}

bool ResidentEngine::Await(const uint32_t& word, uint32_t value) {
  while (true) {
    for (int poll = 0; poll < kPollsPerStatus; ++poll) {
      if (ReadShared(word) == value) return true;
    }
    const cudaError_t status = cudaStreamQuery(stream_);
    if (status == cudaErrorNotReady) continue;
    CheckAlive(status);
    return ReadShared(word) == value;
  }
}

void ResidentEngine::SendMasks(const Round& round, const resident::RoundRecord& record) {
  MaskBuffer& masks = masks_.buffer();
  int row = 0;
  for (const size_t i : ProgramOrder(round)) {
    const SequenceStep& step = round.steps[i];
    masks.Fill(row, step.chosen_max(), step.constraint,
               absl::MakeConstSpan(record.rows).subspan(row + 1, step.chosen_max() - 1));
    row += step.chosen_max();
  }
  for (ResidentEngine* const rank : joined_) {
    const DeviceScope scope(rank->ranks_.index);
    rank->masks_.Send(masks, row, record.rows_mark);
  }
}

void ResidentEngine::Yield() {
  if (!running_) return;
  WriteShared(pinned_->control.stop, 1);
  const bool is_held = std::any_of(session_.members.begin(), session_.members.end(),
                                   [](const Member& member) { return member.is_held; });
  for (ResidentEngine* const rank : joined_) {
    if (!is_held) break;
    const DeviceScope scope(rank->ranks_.index);
    rank->masks_.Release();  // rounds that nobody takes end, too
  }
  Finish();
  running_ = false;
}

void ResidentEngine::Finish() {
  for (const ResidentEngine* const rank : joined_) CheckAlive(cudaStreamSynchronize(rank->stream_));
  if (group_ != nullptr) group_->CheckWaits(ranks_.index);
  // Ranks that differ would go on with caches of different texts.
  for (const ResidentEngine* const rank : joined_) {
    for (int i = 0; i < resident::kResultsMax; ++i) {
      const resident::RoundRecord &own = pinned_->results[i], &other = rank->pinned_->results[i];
      if (own.mark == resident::kVoidMark) continue;  // which only the leader knows
      KERNELS_CHECK(other.mark, ==, own.mark);
      if (own.mark == 0) continue;
      for (int row = 0; row < resident::kRowsMax; ++row)
        KERNELS_CHECK(other.tokens[row], ==, own.tokens[row]);
      for (int s = 0; s < resident::kSequencesMax; ++s)
        KERNELS_CHECK(other.num_verified[s], ==, own.num_verified[s]);
    }
  }
}

// Says where every block stood if a kernel gave up, then aborts: the context is lost.
void ResidentEngine::CheckAlive(cudaError_t status) const {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "resident engine: %s\n", cudaGetErrorString(status));
  // The ranks that waited for the one that failed have given up too, a little later.
  for (const ResidentEngine* const rank : joined_) (void)cudaStreamSynchronize(rank->stream_);
  for (const ResidentEngine* const rank : joined_) rank->PrintStuck();
  std::abort();
}

void ResidentEngine::PrintStuck() const {
  if (pinned_->stuck.is_stuck == 0) return;
  static constexpr const char* kWaits[] = {
      "nothing",      "room in the ring", "weights",      "the experts' choice",
      "partial sums", "the exchange",     "other blocks", "finishers",
      "peers",        "experts' rows",    "consumers",    "masks"};
  for (int b = 0; b < num_blocks_; ++b) {
    const resident::StuckReport::Place& place = pinned_->stuck.places[b];
    const auto wait = static_cast<size_t>(place.waits_for);
    std::fprintf(stderr,
                 "rank %d, block %3d: producer in phase %d, consumers %d, finishers %d; waited for "
                 "%s\n",
                 ranks_.index, b, place.phase[0], place.phase[1], place.phase[2],
                 wait < std::size(kWaits) ? kWaits[wait] : "?");
  }
}

void ResidentEngine::ForceDistinctExperts(int distinct) {
  Yield();
  for (ResidentEngine* const rank : joined_) rank->forced_distinct_experts_ = distinct;
}

ResidentTimes ResidentEngine::Measure(const Round& round, int num_rounds, int verified_rows) {
  Yield();
  const ResidentSchedule& schedule = RoundsOf(KindOf(round)).schedule;
  ResidentTimes times;
  times.num_blocks = num_blocks_;
  times.phases = schedule.phases;
  times.trace.resize(static_cast<size_t>(num_blocks_) * schedule.phases.size() *
                     resident::kTraceStamps);
  void* trace = nullptr;
  CUDA_CHECK(cudaMalloc(&trace, times.trace.size() * sizeof(uint64_t)));
  CUDA_CHECK(cudaMemsetAsync(trace, 0, times.trace.size() * sizeof(uint64_t), stream_));
  // The ring of results is not taken from, so it must hold all rounds.
  const auto run = [&](uint32_t count, uint64_t* stamps) {
    Reset({.round_limit = count, .stop = 0, .log_reach_min = std::log(ReachMinOf(round))});
    Launch(round, /*turn=*/0, [&](resident::Program& program) {
      program.holds_position = true;
      program.forced_verified_rows =
          static_cast<int8_t>(verified_rows > 0 ? verified_rows : resident::kRowsMax);
      program.trace = program.collective.rank == 0 ? stamps : nullptr;
    });
    for (uint32_t i = 0; i < count; ++i) KERNELS_CHECK(Complete(round, i, i), ==, true);
    Finish();
  };
  const uint32_t num_timed =
      std::min<uint32_t>(static_cast<uint32_t>(num_rounds), resident::kResultsMax);
  run(num_timed, nullptr);  // as served: without stamps
  for (uint32_t i = 1; i < num_timed; ++i) {
    KERNELS_CHECK(pinned_->results[i].mark, ==, i + 1);
    times.round_ms.push_back(
        static_cast<double>(pinned_->results[i].end_ns - pinned_->results[i - 1].end_ns) * 1e-6);
  }
  constexpr uint32_t kTracedRounds = 3;
  run(kTracedRounds, static_cast<uint64_t*>(trace));
  times.num_experts = pinned_->results[kTracedRounds - 1].num_experts;
  CUDA_CHECK(cudaMemcpy(times.trace.data(), trace, times.trace.size() * sizeof(uint64_t),
                        cudaMemcpyDeviceToHost));
  CUDA_CHECK(cudaFree(trace));
  return times;
}

}  // namespace ultraspeed::worker::cuda
