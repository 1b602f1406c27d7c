// The resident engine's round before a GPU walks it: its phases in order, who reads what, how many
// bytes.
#include "worker/cuda/resident_schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/worker/cuda/counted_model.h"
#include "worker/cuda/resident_engine.h"
#include "worker/cuda/resident_shape.h"

namespace ultraspeed::worker::cuda {
namespace {

namespace resident = kernels::cuda::resident;
using kernels::bf16;
using resident::InputKind;
using resident::kRowsMax;
using resident::OutputKind;
using resident::Phase;
using resident::PhaseKind;

// ---- Order

std::vector<PhaseLabel> ExpectedLabels(const ModelConfig& config, const RoundKind& kind) {
  std::vector<PhaseLabel> labels;
  const auto add = [&](std::initializer_list<PhaseLabel> more) {
    labels.insert(labels.end(), more);
  };
  // A phase of the target for each band.
  const auto add_bands = [&](PhaseLabel label) {
    labels.insert(labels.end(), static_cast<size_t>(kind.num_bands), label);
  };
  const auto add_choice = [&] {
    if (kind.whole_rows) add({PhaseLabel::kChoice, PhaseLabel::kChoice, PhaseLabel::kChoice});
  };
  for (int pass = 0; pass < kind.draft_passes; ++pass) {
    add({PhaseLabel::kEmbed});
    for (int l = 0; l < config.drafter.num_layers; ++l) {
      add({PhaseLabel::kDraftQkv, PhaseLabel::kDraftAttention, PhaseLabel::kDraftCombine,
           PhaseLabel::kDraftOutput, PhaseLabel::kDraftUp, PhaseLabel::kDraftDown});
    }
    if (config.drafter.has_markov_gate) add({PhaseLabel::kDraftHead});
    add({PhaseLabel::kDraftHead});
    if (config.drafter.markov_rank > 0) {
      add({PhaseLabel::kDraftChain});
    } else {
      add_choice();
    }
  }
  add({PhaseLabel::kEmbed});
  for (size_t l = 0; l < config.attention.size(); ++l) {
    add_bands(PhaseLabel::kQkv);
    add({PhaseLabel::kAttention});
    if (config.attention[l] == AttentionKind::kFull) add({PhaseLabel::kCombine});
    add_bands(PhaseLabel::kOutput);
    add_bands(config.is_moe[l] ? PhaseLabel::kMoeUp : PhaseLabel::kDenseUp);
    add_bands(config.is_moe[l] ? PhaseLabel::kMoeDown : PhaseLabel::kDenseDown);
  }
  add_bands(PhaseLabel::kHead);
  add_choice();
  add({PhaseLabel::kCommit});
  if (config.drafter.num_layers > 0) {
    add_bands(PhaseLabel::kContext);
    add_bands(PhaseLabel::kContext);
    add({PhaseLabel::kContext});
  }
  return labels;
}

TEST(ResidentScheduleTest, EveryLayerHasItsPhasesInOrder) {
  for (const ModelConfig& config :
       {TinyMimo(), ServedRank(), WithoutDrafter(TinyMimo()), WithoutDrafter(ServedRank())}) {
    const CountedModel model(config);
    for (const RoundKind& kind : kAllRounds) {
      if (kind.draft_passes > 0 && !model.has_drafter()) continue;
      std::vector<PhaseLabel> labels;
      for (const Phase& phase : model.Schedule(kind).phases)
        labels.push_back(static_cast<PhaseLabel>(phase.label));
      EXPECT_EQ(labels, ExpectedLabels(config, kind))
          << config.name << " drafter's passes " << kind.draft_passes << " whole rows "
          << kind.whole_rows;
    }
  }
}

TEST(ResidentScheduleTest, ALayersAttentionIsItsOwnKind) {
  for (const ModelConfig& config : {TinyMimo(), ServedRank()}) {
    const CountedModel model(config);
    size_t target_layer = 0;
    int draft_layers = 0;
    for (const Phase& phase : model.Schedule(/*drafts=*/true).phases) {
      if (phase.kind != PhaseKind::kAttend) continue;
      const resident::AttentionTask& task = phase.attention;
      if (task.drafter) {
        ++draft_layers;
        EXPECT_EQ(task.window, config.drafter.window);
        EXPECT_EQ(task.qk_head_dim, config.drafter.head_dim);
        EXPECT_EQ(task.place, kernels::cuda::KvPlace::kRing);
        continue;
      }
      const bool full = config.attention[target_layer++] == AttentionKind::kFull;
      EXPECT_EQ(task.window, full ? 0 : config.window) << "layer " << target_layer - 1;
      EXPECT_EQ(task.qk_head_dim, config.qk_head_dim);
      EXPECT_EQ(task.place, full ? kernels::cuda::KvPlace::kPaged : kernels::cuda::KvPlace::kRing);
      EXPECT_EQ(phase.attention_units_max >= kNumBlocks, full) << "layer " << target_layer - 1;
    }
    EXPECT_EQ(target_layer, config.attention.size());
    EXPECT_EQ(draft_layers, config.drafter.num_layers);
  }
}

// A drafter's pass for each sequence that drafts, in their order, then what is about all of them.
TEST(ResidentScheduleTest, EverySequenceThatDraftsHasAPassOfItsOwn) {
  for (const ModelConfig& config : {TinyMimo(), ServedRank()}) {
    const CountedModel model(config);
    const bool chains = config.drafter.markov_rank > 0;
    for (const RoundKind& kind : kAllRounds) {
      int sequence = 0;
      for (const Phase& phase : model.Schedule(kind).phases) {
        if (sequence == kind.draft_passes) sequence = resident::kOfTarget;
        EXPECT_EQ(phase.draft_of, sequence) << phase.index;
        EXPECT_EQ(phase.kind == PhaseKind::kAttend && phase.attention.drafter,
                  phase.kind == PhaseKind::kAttend && sequence != resident::kOfTarget);
        const bool ends_pass = chains            ? phase.kind == PhaseKind::kChain
                               : kind.whole_rows ? phase.kind == PhaseKind::kDraw
                                                 : phase.output == OutputKind::kLogits;
        if (sequence >= 0 && ends_pass) ++sequence;
      }
    }
  }
}

// Each step of a choice comes after the head whose rows it is about.
TEST(ResidentScheduleTest, ChoicesFromWholeRowsFollowTheirHeadInOrder) {
  for (const auto& [config, passes] :
       {std::pair(ServedRank(), 0), {ServedRank(), 1}, {ServedRank(), 3}, {TinyMimo(), 1}}) {
    const CountedModel model(config);
    const std::vector<Phase> phases =
        model.Schedule({.draft_passes = passes, .whole_rows = true}).phases;
    // Drafts that follow each other are chosen in a phase of their own.
    const int draft_heads = config.drafter.markov_rank > 0 ? 0 : passes;
    int heads = 0;
    for (size_t i = 0; i < phases.size(); ++i) {
      if (phases[i].output != OutputKind::kLogits) continue;
      ++heads;
      ASSERT_LT(i + 4, phases.size());
      EXPECT_EQ(phases[i + 1].kind, PhaseKind::kTally);
      EXPECT_EQ(phases[i + 2].kind, PhaseKind::kSift);
      EXPECT_EQ(phases[i + 3].kind, PhaseKind::kDraw);
      EXPECT_EQ(phases[i + 4].kind, heads <= draft_heads ? PhaseKind::kEmbed : PhaseKind::kCommit);
      for (size_t step = 1; step <= 3; ++step)
        EXPECT_EQ(phases[i + step].draft_of, phases[i].draft_of) << step;
    }
    EXPECT_EQ(heads, draft_heads + 1);
  }
}

// ---- Rows

TEST(ResidentScheduleTest, TapsFollowTheLayersOfTheConfig) {
  for (const ModelConfig& config : {TinyMimo(), ServedRank()}) {
    CountedModel model(config);
    const std::vector<int>& tapped = config.drafter.target_layer_ids;
    const size_t row = tapped.size() * static_cast<size_t>(config.hidden);
    std::vector<bf16> taps(kRowsMax * row);
    model.buffers().taps = taps.data();
    int layer = -1, found = 0;
    for (const Phase& phase : model.Schedule(/*drafts=*/true).phases) {
      const auto label = static_cast<PhaseLabel>(phase.label);
      if (label == PhaseLabel::kQkv) ++layer;
      const bool ends_layer = label == PhaseLabel::kDenseDown || label == PhaseLabel::kMoeDown;
      const auto tap = std::find(tapped.begin(), tapped.end(), layer);
      if (!ends_layer || tap == tapped.end()) {
        EXPECT_EQ(phase.tap, nullptr) << Name(label) << " of layer " << layer;
        continue;
      }
      ++found;
      EXPECT_EQ(phase.tap - taps.data(), (tap - tapped.begin()) * config.hidden) << layer;
      EXPECT_EQ(static_cast<size_t>(phase.tap_stride), row);
    }
    EXPECT_EQ(static_cast<size_t>(found), tapped.size());
  }
}

// Each phase reads what the one before wrote, of the width that it wrote.
TEST(ResidentScheduleTest, RowsGoFromPhaseToPhase) {
  for (const ModelConfig& config : {TinyMimo(), ServedRank()}) {
    CountedModel model(config);
    std::vector<float> floats(3);
    std::vector<bf16> halves(1), taps(1);
    ResidentBuffers& buffers = model.buffers();
    buffers.residual = &floats[0];
    buffers.qkv = &floats[1];
    buffers.gate_up = &floats[2];
    buffers.attended = halves.data();
    const std::vector<Phase> phases = model.Schedule(/*drafts=*/true).phases;
    for (size_t i = 1; i < phases.size(); ++i) {
      SCOPED_TRACE("phase " + std::to_string(i) + ", " +
                   Name(static_cast<PhaseLabel>(phases[i].label)));
      const Phase& phase = phases[i];
      // The Markov head's gate and the head read the same.
      const bool behind_gate = phase.label == static_cast<uint8_t>(PhaseLabel::kDraftHead) &&
                               phases[i - 1].label == phase.label;
      const Phase& before = phases[i - (behind_gate ? 2 : 1)];
      if (phase.kind == PhaseKind::kAttend) {
        EXPECT_EQ(before.out, buffers.qkv);
        EXPECT_EQ(phase.attention.qkv, buffers.qkv);
        EXPECT_EQ(phase.attention.row_width, before.out_stride);
        EXPECT_EQ(phase.attention.out, buffers.attended);
      }
      if (phase.kind != PhaseKind::kProduct && phase.kind != PhaseKind::kMoeUp) continue;
      switch (phase.input) {
        case InputKind::kNorm: {
          const bool of_features = before.output == OutputKind::kFeatures;
          EXPECT_TRUE(of_features || before.output == OutputKind::kResidual);
          EXPECT_EQ(before.residual, of_features ? nullptr : buffers.residual);
          // It reads what was written last.
          EXPECT_EQ(before.before.rows[0] + 1, phase.before.rows[0]);
          EXPECT_EQ(phase.x_stride, config.hidden);
          break;
        }
        case InputKind::kBf16:
          if (phase.output == OutputKind::kFeatures) break;  // taps, a round's worth before
          EXPECT_EQ(phase.x, buffers.attended);
          EXPECT_EQ(phase.x_stride, before.attention.num_q_heads * 128);  // v heads
          break;
        case InputKind::kSwiGlu:
          EXPECT_EQ(phase.x, buffers.gate_up);
          EXPECT_EQ(before.out, buffers.gate_up);
          EXPECT_EQ(phase.x_stride, before.out_stride);
          break;
      }
    }
  }
}

// The phases of a product differ by their rows alone: they wait for the same and multiply the same.
TEST(ResidentScheduleTest, BandsOfAProductHaveRowsOfTheirOwn) {
  CountedModel model(ServedRank());
  ResidentBuffers& buffers = model.buffers();
  std::vector<float> floats(3);
  std::vector<bf16> halves(2);
  std::vector<float4> carries(1);
  buffers.qkv = &floats[0];
  buffers.gate_up = &floats[1];
  buffers.logits = &floats[2];
  buffers.attended = &halves[0];
  buffers.taps = &halves[1];
  buffers.carry = carries.data();
  const std::vector<Phase> phases =
      model.Schedule({.draft_passes = 2, .num_bands = 2, .whole_rows = false}).phases;
  int num_pairs = 0;
  for (size_t i = 1; i < phases.size(); ++i) {
    const Phase &first = phases[i - 1], &second = phases[i];
    if (second.band == 0) continue;
    SCOPED_TRACE(i);
    ++num_pairs;
    EXPECT_EQ(first.band, 0);
    EXPECT_EQ(second.band, 1);
    EXPECT_EQ(second.draft_of, resident::kOfTarget);
    EXPECT_EQ(second.weights, first.weights);
    EXPECT_EQ(second.label, first.label);
    if (second.kind != PhaseKind::kMoeUp) {
      EXPECT_EQ(second.wait_counter, first.wait_counter);
      EXPECT_EQ(second.wait_target, first.wait_target);
    }
    if (first.out != nullptr) {
      EXPECT_EQ(second.out - first.out, 8 * first.out_stride);
    }
    if (first.input == InputKind::kBf16 && first.x != nullptr) {
      EXPECT_EQ(static_cast<const bf16*>(second.x) - static_cast<const bf16*>(first.x),
                8 * first.x_stride);
    }
    if (first.input == InputKind::kSwiGlu && first.x != nullptr) {
      EXPECT_EQ(static_cast<const float*>(second.x) - static_cast<const float*>(first.x),
                8 * first.x_stride);
    }
    if (second.kind == PhaseKind::kProduct) {
      EXPECT_EQ(second.carry - first.carry, buffers.band_carries);
    }
  }
  // Four products a layer, the head, the features and the drafter's keys and values.
  EXPECT_EQ(num_pairs, 4 * model.config().num_layers + 3);
}

TEST(ResidentScheduleTest, KindsOfRoundAreThoseThatRowsAllow) {
  std::vector<std::string> kinds;
  for (const RoundKind& kind : RoundKinds(/*draft_passes_max=*/8)) {
    if (!kind.whole_rows) kinds.push_back(absl::StrCat(kind.num_bands, ":", kind.draft_passes));
  }
  EXPECT_EQ(absl::StrJoin(kinds, " "), "1:0 1:1 1:2 1:3 1:4 2:0 2:1 2:2 2:3 2:4 2:5 2:6 2:7 2:8");
  EXPECT_EQ(RoundKinds(/*draft_passes_max=*/0).size(), 4);
}

TEST(ResidentScheduleTest, EveryDrafterLayerAppendsItsOwnKeysAndValues) {
  CountedModel model(ServedRank());
  const DrafterConfig& config = model.config().drafter;
  const int width = 2 * config.num_kv_heads * config.head_dim;
  std::vector<float> context(static_cast<size_t>(width * config.num_layers));
  model.buffers().context_kv = context.data();
  const std::vector<resident::AttentionTask> tasks = AppendTasks(model.Described());
  ASSERT_EQ(tasks.size(), static_cast<size_t>(config.num_layers));
  for (int l = 0; l < config.num_layers; ++l) {
    EXPECT_EQ(tasks[static_cast<size_t>(l)].qkv - context.data(), l * width);
    EXPECT_EQ(tasks[static_cast<size_t>(l)].row_width, width * config.num_layers);
  }
  EXPECT_EQ(model.Schedule(/*drafts=*/false).phases.back().num_append_tasks, config.num_layers);
}

// ---- Bytes

// Of the weights that a round reads, from the shape alone: bytes of an element with its share of
// scales.
struct RoundBytes {
  double target = 0, drafter = 0, features = 0, context = 0;
};
RoundBytes BytesOf(const ModelConfig& c, double distinct_experts) {
  constexpr double kBf16 = 2, kFp8 = 1 + 16.0 / 2048, kMxfp4 = 0.5 + 1.0 / 32, kFp32 = 4;
  const double hidden = c.hidden;
  // Groups of FP8 rows start on whole scale blocks where there are several.
  const int group = (c.num_q_heads / c.num_kv_heads + 1) * c.qk_head_dim + c.v_head_dim;
  const int group_rows = c.num_kv_heads == 1 ? group : (group + 127) / 128 * 128;
  RoundBytes bytes;
  for (const bool moe : c.is_moe) {
    bytes.target +=
        c.num_kv_heads * group_rows * hidden * kFp8 + c.num_q_heads * c.v_head_dim * hidden * kBf16;
    bytes.target += moe ? c.num_experts * hidden * kFp32 +
                              distinct_experts * 3 * c.expert_ffn_width * hidden * kMxfp4
                        : 3 * c.dense_ffn_width * hidden * kFp8;
  }
  const double head = c.vocabulary * hidden * kBf16;
  bytes.target += head;
  const DrafterConfig& d = c.drafter;
  const double layer = (2 * d.num_q_heads + 2 * d.num_kv_heads) * d.head_dim + 3 * d.ffn_width;
  const int gate_rows = d.has_markov_gate ? d.markov_rank : 0;
  bytes.drafter = d.num_layers * layer * hidden * kBf16 + head + gate_rows * hidden * kBf16;
  bytes.features = static_cast<double>(d.target_layer_ids.size()) * hidden * hidden * kBf16;
  bytes.context = d.num_layers * 2 * d.num_kv_heads * d.head_dim * hidden * kBf16;
  return bytes;
}

double BytesOf(const ResidentSchedule& schedule, double distinct_experts) {
  double bytes = 0;
  for (const Phase& phase : schedule.phases) bytes += PhaseBytes(phase, distinct_experts);
  return bytes;
}

TEST(ResidentScheduleTest, PhasesReadTheShapesBytes) {
  for (const ModelConfig& config : {TinyMimo(), ServedRank()}) {
    for (const ResidentRanks& ranks : {ResidentRanks(), kTogether, kAlone}) {
      for (const double experts : {0.0, 8.0, 59.5}) {
        const CountedModel model(config, ranks);
        const RoundBytes want = BytesOf(config, experts);
        // Every rank has the whole of the drafter's feature projection; alone, it reads a share.
        const int share = ranks.alone ? ranks.num_ranks : 1;
        const double plain = want.target + want.features / share + want.context;
        EXPECT_NEAR(BytesOf(model.Schedule(false), experts), plain, 1e-6 * plain);
        EXPECT_NEAR(BytesOf(model.Schedule(true), experts), plain + want.drafter, 1e-6 * plain);
      }
    }
  }
}

TEST(ResidentScheduleTest, TheServedRanksRoundIsFifteenAndAHalfGigabytes) {
  // 59.5 distinct experts of 384: the mean of 8 rows that choose 8 each, uniformly.
  const CountedModel together(ServedRank(), kTogether), alone(ServedRank(), kAlone);
  EXPECT_NEAR(BytesOf(together.Schedule(true), 59.5) * 1e-9, 15.72, 0.01);
  EXPECT_NEAR(BytesOf(alone.Schedule(true), 59.5) * 1e-9, 15.39, 0.01);
}

// ---- Ranks

// Kernels of two ranks walk the same phases, so their sums meet.
TEST(ResidentScheduleTest, AllRanksWalkTheSamePhases) {
  for (const RoundKind& kind : kAllRounds) {
    const std::string first =
        CountedModel(ServedRank(), {.num_ranks = kNumRanks, .index = 0}).Schedule(kind).ToString();
    for (int rank = 1; rank < kNumRanks; ++rank) {
      const CountedModel model(ServedRank(), {.num_ranks = kNumRanks, .index = rank});
      EXPECT_EQ(model.Schedule(kind).ToString(), first) << rank;
    }
  }
}

// An inbox holds three turns of every rank's part of the residual stream; every rank has room for
// the rows of all, of which top-k and top-p leave as much undecided as there is.
TEST(ResidentScheduleTest, RanksHaveInboxesMailAndRoomForWholeRows) {
  const CountedModel one(ServedRank()), together(ServedRank(), kTogether);
  const size_t words = static_cast<size_t>(one.config().hidden / 16) * 32;
  EXPECT_EQ(CountedModel(ServedRank(), kTogether).buffers().inbox_rank_words, words);
  const auto activations = [](const CountedModel& model) {
    return model.taken()[MemoryKind::kActivations];
  };
  const auto taken = [](size_t bytes) {
    return (bytes + DeviceArena::kAlignment - 1) / DeviceArena::kAlignment *
           DeviceArena::kAlignment;
  };
  const auto more_of = [&](size_t bytes_of_rank) {
    return taken(kNumRanks * bytes_of_rank) - taken(bytes_of_rank);
  };
  const auto vocabulary = static_cast<size_t>(one.config().vocabulary);
  EXPECT_EQ(activations(together) - activations(one),
            taken(3 * kNumRanks * words * sizeof(uint2)) + more_of(sizeof(resident::RankMail)) +
                more_of(kRowsMax * vocabulary * sizeof(uint64_t)));
}

// ---- The rest

TEST(ResidentScheduleTest, PrintsALineAPhase) {
  const ResidentSchedule schedule = CountedModel(TinyMimo()).Schedule(/*drafts=*/true);
  const std::string text = schedule.ToString();
  EXPECT_EQ(static_cast<size_t>(std::count(text.begin(), text.end(), '\n')),
            schedule.phases.size());
  size_t begin = 0;
  for (const Phase& phase : schedule.phases) {
    const std::string line = text.substr(begin, text.find('\n', begin) - begin);
    begin += line.size() + 1;
    EXPECT_NE(line.find(Name(static_cast<PhaseLabel>(phase.label))), std::string::npos) << line;
  }
}

// What the schedule relies on and the shapes have.
TEST(ResidentShapeTest, TakesBothShapes) {
  EXPECT_TRUE(CheckResidentShape(TinyMimo(), KvPrecision::kBf16).ok());
  EXPECT_TRUE(CheckResidentShape(ServedRank(), KvPrecision::kBf16).ok());
  EXPECT_TRUE(CheckResidentShape(WithoutDrafter(ServedRank()), KvPrecision::kBf16).ok());
}

// What tests on several GPUs use (ranks_test.cc).
TEST(ResidentShapeTest, TakesTheTestsPartsOfTwoAndOfFour) {
  for (const ModelConfig& config : {TinyMimo(), ConfigOf(kGpuShape)}) {
    for (const int num_ranks : {2, 4}) {
      const absl::StatusOr<ModelConfig> part = PartOf(config, num_ranks);
      ASSERT_TRUE(part.ok()) << part.status();
      EXPECT_TRUE(CheckShape(*part).ok()) << CheckShape(*part);
      EXPECT_TRUE(CheckResidentShape(*part, KvPrecision::kBf16).ok())
          << CheckResidentShape(*part, KvPrecision::kBf16);
    }
  }
}

TEST(ResidentShapeTest, NamesTheDimensionThatItDoesNotTake) {
  const auto message = [](const std::function<void(ModelConfig&)>& change,
                          KvPrecision precision = KvPrecision::kBf16) {
    ModelConfig config = ServedRank();
    change(config);
    const absl::Status status = CheckResidentShape(config, precision);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  const std::string takes = "; the resident engine takes ";
  EXPECT_EQ(message([](ModelConfig& c) { c.hidden = 6144 + 128; }),
            "hidden_size: is 6272" + takes + "multiples of 128 up to 6144");
  EXPECT_EQ(message([](ModelConfig& c) { c.hidden = 6144 - 64; }),
            "hidden_size: is 6080" + takes + "multiples of 128 up to 6144");
  EXPECT_EQ(message([](ModelConfig& c) { c.expert_ffn_width = 2048; }),
            "moe_intermediate_size of a rank: is 2048" + takes + "multiples of 32 up to 256");
  EXPECT_EQ(message([](ModelConfig& c) { c.expert_ffn_width = 144; }),
            "moe_intermediate_size of a rank: is 144" + takes + "multiples of 32 up to 256");
  EXPECT_EQ(message([](ModelConfig& c) { c.vocabulary = 1 << 20; }),
            "vocab_size: is 1048576" + takes + "up to 1048575");
  EXPECT_EQ(message([](ModelConfig& c) { c.num_experts = 385; }),
            "n_routed_experts: is 385" + takes + "up to 384");
  EXPECT_EQ(message([](ModelConfig& c) { c.experts_per_token = 9; }),
            "num_experts_per_tok: is 9" + takes + "up to 8");
  EXPECT_EQ(message([](ModelConfig& c) { c.num_q_heads = 17; }),
            "query heads of a key head: is 17" + takes + "up to 16");
  EXPECT_EQ(message([](ModelConfig& c) { c.drafter.block_size = 9; }),
            "dflash block_size: is 9" + takes + "up to 8");
  EXPECT_EQ(message([](ModelConfig& c) { c.rotary_dims = 128; }),
            "rotary dims: is 128" + takes + "64");
  EXPECT_EQ(message([](ModelConfig& c) { c.drafter.rotary_dims = 32; }),
            "dflash rotary dims: is 32" + takes + "64");
  EXPECT_EQ(message([](ModelConfig& c) { c.drafter.markov_rank = 288; }),
            "dflash markov_rank: is 288" + takes + "up to 256");
  EXPECT_EQ(message([](ModelConfig& c) { c.drafter.markov_rank = 64, c.vocabulary = 1000; }),
            "vocab_size of a rank: is 1000" + takes + "multiples of 16 where a Markov head drafts");
  EXPECT_EQ(message([](ModelConfig& c) { c.drafter.markov_rank = 64, c.vocabulary = 262160; }),
            "vocab_size of a rank: is 262160" + takes + "up to 262144 where a Markov head drafts");
  EXPECT_EQ(message([](ModelConfig&) {}, KvPrecision::kFp8), "kv precision: is 8" + takes + "bf16");
}

TEST(ResidentEngineTest, OverACountingArenaTakesMemoryAndNoRounds) {
  CountedModel model(ServedRank(), kTogether);
  const MemoryPlan before = model.arena().taken();
  const ResidentEngine engine(model.config(), model.weights(), model.target(), model.drafter(),
                              kPositions, /*banned_token=*/-1, model.config().vocabulary,
                              /*wait_ns_max=*/1, model.ranks(), model.arena(),
                              /*stream=*/nullptr);
  const MemoryPlan& after = model.arena().taken();
  EXPECT_GT(after[MemoryKind::kActivations], before[MemoryKind::kActivations]);
  // At least all schedules.
  size_t num_phases = 0;
  for (const RoundKind& kind : kAllRounds) num_phases += model.Schedule(kind).phases.size();
  EXPECT_GE(after[MemoryKind::kRoundData],
            before[MemoryKind::kRoundData] + num_phases * sizeof(Phase));
  EXPECT_EQ(after[MemoryKind::kWeights], before[MemoryKind::kWeights]);
  const SequenceStep step = {.computed = 0, .num_tokens = 1, .sample = true, .block = 1};
  EXPECT_FALSE(engine.Takes(step));
}

TEST(ResidentEngineTest, IsPlannedForIfTheOptionsAndTheCachesAllowIt) {
  const auto activations = [](bool resident, KvPrecision precision) {
    const MemoryPlan plan = PlanMemory(ServedRank(), {.executor = {.max_sequences = 1,
                                                                   .kv_tokens = 4096,
                                                                   .kv_precision = precision,
                                                                   .resident = resident}});
    return plan[MemoryKind::kActivations];
  };
  EXPECT_GT(activations(true, KvPrecision::kBf16), activations(false, KvPrecision::kBf16));
  EXPECT_EQ(activations(true, KvPrecision::kFp8), activations(false, KvPrecision::kFp8));
}

}  // namespace
}  // namespace ultraspeed::worker::cuda
