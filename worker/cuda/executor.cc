// The rounds of a CudaExecutor; executor_creation.cc makes it.
#include <algorithm>
#include <utility>

#include "kernels/check.h"
#include "worker/cuda/check.h"
#include "worker/cuda/cuda_executor.h"
#include "worker/cuda/device.h"

namespace ultraspeed::worker::cuda {
namespace {

namespace ops = kernels::cuda;

constexpr size_t kGraphsMax = 64;  // further shapes are launched directly

// The pass's sequences in device memory, for the target.
ops::Sequences SequencesOf(const PassBuffers& buffers, int num_sequences, int rows_max,
                           int64_t position_end_max) {
  return {.num_sequences = num_sequences,
          .rows_max = rows_max,
          .position_end_max = position_end_max,
          .first_row = buffers.input.first_row,
          .num_rows = buffers.input.num_rows,
          .position = buffers.input.position,
          .full_pages = buffers.input.pages,
          .full_pages_stride = buffers.capacity().pages,
          .slot = buffers.input.slot};
}

}  // namespace

void CudaExecutor::DropGraphs() {
  for (auto& [key, graph] : graphs_) {
    if (graph.executable != nullptr) CUDA_CHECK(cudaGraphExecDestroy(graph.executable));
  }
  graphs_.clear();
}

void CudaExecutor::ForceDistinctExperts(int distinct) {
  DropGraphs();
  model_->target.ForceDistinctExperts(distinct);
  if (model_->resident != nullptr) model_->resident->ForceDistinctExperts(distinct);
}

// Caches need no clearing: a position is read only after the sequence that reads it has written it.
void CudaExecutor::ResetSlot(int slot) {
  KERNELS_CHECK(slot, >=, 0);
  KERNELS_CHECK(slot, <, limits_.max_sequences);
}

void CudaExecutor::CopySnapshot(SnapshotCopy direction, int snapshot, int slot, int64_t position) {
  CheckSnapshot(snapshot, slot, position, *this);
  if (model_->resident != nullptr && !link_.divided()) model_->resident->Yield();
  std::vector<kernels::cuda::Copy> copies;
  model_->target.AddSnapshotCopies(direction, snapshot, slot, position, copies);
  if (model_->drafter != nullptr)
    model_->drafter->AddSnapshotCopies(direction, snapshot, slot, position, copies);
  kernels::cuda::CopyAll(copies, stream_);
}

RoundResult GpuExecutor::Run(const Round& round) {
  CheckRound(round, *this);
  ResidentEngine* const engine = resident();
  if (engine == nullptr) return RunPasses(round);
  const RoundParts parts = PartsOf(
      round, [&](const SequenceStep& step) { return use_resident_ && engine->Takes(step); });
  if (!ResidentPays(parts)) {
    engine->Yield();
    return RunPasses(round);
  }
  const bool goes_on = parts.resident.size() == 1 && parts.passes.steps.empty();
  std::vector<RoundResult> shared = RunResident(parts.resident, goes_on);
  RoundResult passes;
  if (!parts.passes.steps.empty()) passes = RunPasses(parts.passes);
  return parts.Join(std::move(shared), std::move(passes));
}

std::vector<RoundResult> CudaExecutor::RunResident(const std::vector<Round>& rounds, bool goes_on) {
  std::vector<ResidentEngine::Finished> finished;
  if (goes_on) {
    finished.push_back(model_->resident->Run(rounds.front()));
  } else {
    finished = model_->resident->RunInTurns(rounds);
  }
  std::vector<RoundResult> results;
  for (size_t i = 0; i < finished.size(); ++i) {
    int num_rows = 0, draft_passes = 0;
    for (size_t s = 0; s < rounds[i].steps.size(); ++s) {
      const SequenceResult& result = finished[i].result.sequences[s];
      num_rows += 1 + result.num_drafted;
      draft_passes += rounds[i].steps[s].block > 1 && !result.took_own;
    }
    CountRows(num_rows, /*num_samples=*/num_rows, draft_passes, finished[i].num_experts);
    results.push_back(std::move(finished[i].result));
  }
  return results;
}

RoundResult CudaExecutor::RunPasses(const Round& round) {
  const std::vector<PassPlan> passes = PlanPasses(round);
  RoundResult result;
  result.sequences.resize(round.steps.size());
  auto uncollected = passes.begin();
  const auto collect = [&](auto end) {
    Wait();
    for (; uncollected != end; ++uncollected) {
      Collect(round, *uncollected, BuffersOf(*uncollected), result);
      Count(*uncollected, BuffersOf(*uncollected));
    }
  };
  for (auto pass = passes.begin(); pass != passes.end(); ++pass) {
    PassBuffers& buffers = BuffersOf(*pass);
    // With and without constraints they have the same.
    const bool taken = std::any_of(
        uncollected, pass, [&](const PassPlan& other) { return &BuffersOf(other) == &buffers; });
    if (taken) collect(pass);
    FillInput(round, *pass, buffers);
    Enqueue(round, *pass, buffers);
  }
  collect(passes.end());
  return result;
}

void CudaExecutor::Logits(const SequenceStep& step, float* out) {
  if (model_->resident != nullptr && !link_.divided()) model_->resident->Yield();
  Round round{.steps = {step}};
  round.steps[0].sample = false;
  CheckRound(round, *this);
  const PassPlan pass = PlanPasses(round).front();
  FillInput(round, pass, model_->prefill);
  Enqueue(round, pass, model_->prefill);
  const auto vocabulary = static_cast<size_t>(config_.vocabulary);
  for (int begin = 0; begin < pass.num_rows; begin += limits_.max_logits) {
    const int count = std::min(limits_.max_logits, pass.num_rows - begin);
    model_->target.Logits(model_->row_indices + begin, count, model_->logits, stream_);
    if (out == nullptr) continue;
    CUDA_CHECK(cudaMemcpyAsync(out + static_cast<size_t>(begin) * vocabulary, model_->logits,
                               static_cast<size_t>(count) * vocabulary * sizeof(float),
                               cudaMemcpyDeviceToHost, stream_));
  }
  Wait();
  Count(pass, model_->prefill);
}

PassBuffers& CudaExecutor::BuffersOf(const PassPlan& pass) {
  return pass.kind == PassKind::kPrefill ? model_->prefill
                                         : model_->decode[static_cast<size_t>(pass.block - 1)];
}

void CudaExecutor::FillInput(const Round& round, const PassPlan& pass, PassBuffers& buffers) {
  KERNELS_CHECK(pass.alternatives, <=, kAlternativesMax);
  KERNELS_CHECK(pass.position_end, <=, limits_.positions);
  PassInput& in = buffers.host_input;
  const int block_rows = config_.draft_block();
  int row = 0, token = 0, sample = 0;
  for (size_t s = 0; s < pass.steps.size(); ++s) {
    const SequenceStep& step = round.steps[static_cast<size_t>(pass.steps[s])];
    const int num_rows = step.rows();
    in.position[s] = step.computed;
    in.first_row[s] = row;
    in.num_rows[s] = num_rows;
    in.slot[s] = step.slot;
    in.draft_first_row[s] = static_cast<int>(s) * block_rows;
    in.draft_num_rows[s] = block_rows;
    for (int i = 0; i < step.num_tokens; ++i) {
      KERNELS_CHECK(step.tokens[i], >=, 0);
      KERNELS_CHECK(step.tokens[i], <, config_.vocabulary);
      in.tokens[token++] = step.tokens[i];
    }
    for (int j = 0; step.sample && j < step.chosen_max(); ++j, ++sample) {
      in.sample_rows[sample] = row + step.num_tokens - 1 + j;
      in.samples[sample] = {.spec = step.sampling,
                            .position = step.computed + step.num_tokens + j,
                            .want_logprob = step.logprobs >= 0 ? 1 : 0};
    }
    for (int j = 1; j < step.chosen_max(); ++j) {  // all of a decode pass have one block
      const size_t draft = static_cast<size_t>(j - 1) * pass.steps.size() + s;
      if (pass.given) in.given_drafts[draft] = step.drafts[j - 1];
      in.draft_rows[draft] = static_cast<int>(s) * block_rows + j;
      in.draft_samples[draft] = {
          .spec = step.sampling, .position = step.computed + j, .want_logprob = 0};
    }
    const int num_pages = static_cast<int>(PagesOf(step.computed + num_rows));
    std::copy_n(step.pages, num_pages,
                in.pages + s * static_cast<size_t>(buffers.capacity().pages));
    row += num_rows;
  }
}

void CudaExecutor::Enqueue(const Round& round, const PassPlan& pass, PassBuffers& buffers) {
  const int num_sequences = static_cast<int>(pass.steps.size());
  buffers.Upload(num_sequences, static_cast<int>(PagesOf(pass.position_end)), stream_);
  const auto launch = [&](DecodePart part) {
    const int64_t bound = PositionBound(pass.position_end, limits_.positions);
    LaunchDecode({num_sequences, pass.block, bound, part, pass.given}, buffers);
  };
  if (pass.constrained && pass.block > 1) launch(DecodePart::kDraft);
  if (pass.constrained) UploadMasks(round, pass, buffers);
  if (pass.kind == PassKind::kPrefill) {
    EnqueuePrefill(pass, buffers);
  } else {
    launch(pass.constrained ? DecodePart::kMaskedTarget : DecodePart::kAll);
  }
  if (pass.alternatives > 0) {
    if (banned_token_ >= 0) {  // a huge negative number in every row, as on the CPU
      constexpr int kNeverChosenByte = 0xFE;
      CUDA_CHECK(cudaMemset2DAsync(
          model_->logits + banned_token_, static_cast<size_t>(config_.vocabulary) * sizeof(float),
          kNeverChosenByte, sizeof(float), static_cast<size_t>(pass.num_samples), stream_));
    }
    ops::TopLogprobs(model_->logits, pass.num_samples, config_.vocabulary, vocabulary_used_,
                     std::min(pass.alternatives, vocabulary_used_), buffers.output.top_tokens,
                     buffers.output.top_logprobs, stream_);
  }
  buffers.Download(stream_);
  if (model_->num_counted_layers > 0) {
    const int choices = model_->num_counted_layers * pass.num_rows * config_.experts_per_token;
    CUDA_CHECK(cudaMemcpyAsync(buffers.host_expert_ids, model_->target.expert_ids(),
                               static_cast<size_t>(choices) * sizeof(int32_t),
                               cudaMemcpyDeviceToHost, stream_));
  }
  CUDA_CHECK(cudaGetLastError());
}

void CudaExecutor::EnqueuePrefill(const PassPlan& pass, PassBuffers& buffers) {
  const ops::Sequences sequences =
      SequencesOf(buffers, static_cast<int>(pass.steps.size()), pass.rows_max, pass.position_end);
  model_->target.Run(buffers.input.tokens, pass.num_rows, sequences, stream_);
  if (pass.num_samples > 0) {
    model_->target.Logits(buffers.input.sample_rows, pass.num_samples, model_->logits, stream_);
    if (pass.constrained) Mask(pass.num_samples);
    Choose(model_->logits, buffers.input.samples, pass.num_samples, buffers.output.tokens,
           buffers.output.logprobs);
  }
  if (model_->drafter != nullptr) {
    model_->drafter->AppendContext(model_->target.taps(), pass.num_rows, sequences, nullptr,
                                   stream_);
  }
}

// Drafts of every sequence, place after place.
void CudaExecutor::EnqueueDraft(int num_sequences, int block, int64_t position_bound,
                                PassBuffers& buffers) {
  const PassInput& in = buffers.input;
  const int num_drafts = num_sequences * (block - 1);
  ops::Sequences blocks = SequencesOf(buffers, num_sequences, config_.drafter.block_size,
                                      std::min(position_bound + kDraftBlockMax, limits_.positions));
  blocks.first_row = in.draft_first_row;
  blocks.num_rows = in.draft_num_rows;
  model_->drafter->Draft(in.tokens, blocks, in.draft_rows, num_drafts, model_->logits, stream_);
  if (config_.drafter.markov_rank == 0) {
    Choose(model_->logits, in.draft_samples, num_drafts, buffers.drafts_by_place, nullptr);
  } else {
    ChooseInTurn(num_sequences, block, buffers);
  }
}

// Drafts of which each knows the one before it, those of one place in the block side by side.
void CudaExecutor::ChooseInTurn(int num_sequences, int block, PassBuffers& buffers) {
  const int32_t* previous = buffers.input.tokens;
  float* logits = model_->logits;
  for (int begin = 0; begin < num_sequences * (block - 1); begin += num_sequences) {
    model_->drafter->AddMarkovBias(previous, begin, num_sequences, logits, stream_);
    int32_t* const drafts = buffers.drafts_by_place + begin;
    Choose(logits, buffers.input.draft_samples + begin, num_sequences, drafts, nullptr);
    previous = drafts;
    logits += static_cast<int64_t>(num_sequences) * config_.vocabulary;
  }
}

// Verify, accept, commit.
void CudaExecutor::EnqueueTarget(int num_sequences, int block, int64_t position_bound, bool masked,
                                 PassBuffers& buffers) {
  const PassInput& in = buffers.input;
  const int num_rows = num_sequences * block;
  const ops::Sequences sequences = SequencesOf(buffers, num_sequences, block, position_bound);
  model_->target.Run(block > 1 ? buffers.block_tokens : in.tokens, num_rows, sequences, stream_);
  model_->target.Logits(in.sample_rows, num_rows, model_->logits, stream_);
  if (masked) Mask(num_rows);
  Choose(model_->logits, in.samples, num_rows, buffers.output.tokens, buffers.output.logprobs);
  if (block > 1) {
    ops::Accept(buffers.drafts, buffers.output.tokens, num_sequences, block,
                buffers.output.num_accepted, buffers.kept, stream_);
  }
  if (model_->drafter != nullptr) {
    model_->drafter->AppendContext(model_->target.taps(), num_rows, sequences,
                                   block > 1 ? buffers.kept : nullptr, stream_);
  }
}

// One round of every sequence, or a part of it, all on the device.
void CudaExecutor::EnqueueDecode(const GraphKey& key, PassBuffers& buffers) {
  const auto [num_sequences, block, position_bound, part, given] = key;
  if (block > 1 && part != DecodePart::kMaskedTarget) {
    if (!given) EnqueueDraft(num_sequences, block, position_bound, buffers);
    ops::GatherBlocks(buffers.input.tokens,
                      given ? buffers.input.given_drafts : buffers.drafts_by_place, num_sequences,
                      block, buffers.block_tokens, buffers.drafts, stream_);
  }
  if (part != DecodePart::kDraft) {
    EnqueueTarget(num_sequences, block, position_bound, part == DecodePart::kMaskedTarget, buffers);
  }
}

// The first pass of a shape is launched kernel by kernel (which also loads the kernels), the second
// is captured, later ones replay.
void CudaExecutor::LaunchDecode(const GraphKey& key, PassBuffers& buffers) {
  if (!options_.use_graphs || (graphs_.size() >= kGraphsMax && graphs_.count(key) == 0)) {
    EnqueueDecode(key, buffers);
    return;
  }
  Graph& graph = graphs_[key];
  graph.num_uses += 1;
  if (graph.num_uses == 1) {
    EnqueueDecode(key, buffers);
    return;
  }
  if (graph.executable == nullptr) {
    cudaGraph_t captured = nullptr;
    if (link_.divided()) link_.group->Settle(stream_);
    CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    EnqueueDecode(key, buffers);
    CUDA_CHECK(cudaStreamEndCapture(stream_, &captured));
    CUDA_CHECK(cudaGraphInstantiate(&graph.executable, captured, 0));
    CUDA_CHECK(cudaGraphDestroy(captured));
    if (link_.divided()) {
      CUDA_CHECK(cudaGraphUpload(graph.executable, stream_));
      link_.group->Settle(stream_);
    }
  }
  CUDA_CHECK(cudaGraphLaunch(graph.executable, stream_));
}

void CudaExecutor::UploadMasks(const Round& round, const PassPlan& pass,
                               const PassBuffers& buffers) {
  const auto drafts_of_step = static_cast<size_t>(pass.block - 1);
  std::vector<int32_t> drafts(pass.steps.size() * drafts_of_step);
  if (!drafts.empty()) {
    CUDA_CHECK(cudaMemcpyAsync(drafts.data(), buffers.drafts, drafts.size() * sizeof(int32_t),
                               cudaMemcpyDeviceToHost, stream_));
  }
  CUDA_CHECK(cudaStreamSynchronize(stream_));  // nor is a pass's upload before under way then
  int row = 0;
  for (size_t s = 0; s < pass.steps.size(); ++s) {
    const SequenceStep& step = round.steps[static_cast<size_t>(pass.steps[s])];
    if (!step.sample) continue;
    model_->masks.Fill(row, step.chosen_max(), step.constraint,
                       absl::MakeConstSpan(drafts).subspan(s * drafts_of_step, drafts_of_step));
    row += step.chosen_max();
  }
  model_->masks.Upload(row, stream_);
}

void CudaExecutor::Mask(int num_rows) {
  ops::MaskLogits(model_->logits, num_rows, config_.vocabulary, vocabulary_used_,
                  model_->masks.device(), stream_);
}

void CudaExecutor::Choose(float* logits, const ops::SampleRow* rows, int num_rows, int32_t* tokens,
                          float* logprobs) {
  ops::Sample(logits, num_rows, config_.vocabulary, vocabulary_used_, banned_token_, rows, tokens,
              logprobs, model_->workspace.data(), stream_);
}

void CudaExecutor::Wait() {
  CUDA_CHECK(cudaEventRecord(round_done_, stream_));
  CUDA_CHECK(cudaEventSynchronize(round_done_));
  if (link_.divided()) link_.group->CheckWaits(link_.rank.index);
}

void CudaExecutor::Collect(const Round& round, const PassPlan& pass, const PassBuffers& buffers,
                           RoundResult& result) const {
  const PassOutput& from = buffers.host_output;
  const int top_stride = std::min(pass.alternatives, vocabulary_used_);
  int sample = 0;
  for (size_t s = 0; s < pass.steps.size(); ++s) {
    const auto step_idx = static_cast<size_t>(pass.steps[s]);
    const SequenceStep& step = round.steps[step_idx];
    if (!step.sample) continue;
    SequenceResult& out = result.sequences[step_idx];
    out.num_drafted = step.chosen_max() - 1;
    out.num_accepted = out.num_drafted > 0 ? from.num_accepted[s] : 0;
    out.took_own = step.brings_drafts();
    KERNELS_CHECK(out.num_accepted, >=, 0);
    KERNELS_CHECK(out.num_accepted, <=, out.num_drafted);
    for (int j = 0; j <= out.num_accepted; ++j) {
      const int row = sample + j;
      ChosenToken chosen{.token = from.tokens[row],
                         .logprob = step.logprobs >= 0 ? from.logprobs[row] : 0.0f,
                         .top_tokens = {},
                         .top_logprobs = {}};
      if (step.logprobs > 0) {
        const int count = std::min(step.logprobs, vocabulary_used_);
        const int32_t* const tokens = from.top_tokens + row * top_stride;
        const float* const logprobs = from.top_logprobs + row * top_stride;
        chosen.top_tokens.assign(tokens, tokens + count);
        chosen.top_logprobs.assign(logprobs, logprobs + count);
      }
      out.chosen.push_back(std::move(chosen));
    }
    sample += step.chosen_max();
  }
}

void CudaExecutor::Count(const PassPlan& pass, const PassBuffers& buffers) {
  const auto num_choices = static_cast<size_t>(pass.num_rows * config_.experts_per_token);
  const int32_t* choice = buffers.host_expert_ids;
  int64_t distinct = 0;
  for (int layer = 0; layer < model_->num_counted_layers; ++layer) {
    std::fill(expert_seen_.begin(), expert_seen_.end(), 0);
    for (size_t i = 0; i < num_choices; ++i) expert_seen_[static_cast<size_t>(*choice++)] = 1;
    distinct += std::count(expert_seen_.begin(), expert_seen_.end(), 1);
  }
  CountRows(pass.num_rows, pass.num_samples, pass.block > 1 && !pass.given ? 1 : 0, distinct);
}

void CudaExecutor::CountRows(int num_rows, int num_samples, int draft_passes, int64_t distinct) {
  statistics_.target_passes += 1;
  statistics_.target_rows += num_rows;
  statistics_.moe_layer_passes += model_->target.num_moe_layers();
  statistics_.distinct_experts += distinct;
  statistics_.target_bytes += static_cast<int64_t>(
      bytes_.qkv + bytes_.output + bytes_.router + bytes_.dense_mlp +
      static_cast<size_t>(distinct) * bytes_.expert + (num_samples > 0 ? bytes_.head : 0));
  statistics_.drafter_bytes += static_cast<int64_t>(bytes_.draft_context);
  statistics_.drafter_passes += draft_passes;
  statistics_.drafter_bytes +=
      draft_passes * static_cast<int64_t>(bytes_.draft_block + bytes_.head);
}

}  // namespace ultraspeed::worker::cuda
