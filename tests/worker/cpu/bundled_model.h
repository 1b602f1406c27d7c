// The bundled model as the tests see it: an executor of it, and what its reference implementation
// computed.
//
// Tests that use no more than this are built twice: with load_bundled_model.cc of this folder for
// the CPU and with that of tests/worker/cuda for the GPU.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "worker/model/safetensors.h"
#include "worker/model_executor.h"

namespace ultraspeed::worker {

inline constexpr char kBundledModel[] = "models/tiny-mimo";

// OK if this machine has what the executor under test runs on; else the test is skipped.
absl::Status DeviceUnderTest();

struct BundledModelOptions {
  int num_threads = 2;
  int max_sequences = 8;
};
// Fails the test if the model is missing or damaged.
std::unique_ptr<ModelExecutor> LoadBundledModel(const BundledModelOptions& options = {});

// golden/logits.safetensors: 300 tokens of text and the reference's logits at some of their
// positions.
class Reference {
 public:
  Reference()
      : file_(*SafetensorsFile::Open(std::string(kBundledModel) + "/golden/logits.safetensors")) {
    for (const TensorView& tensor : file_->tensors()) tensors_[tensor.name] = tensor;
  }
  template <typename T>
  std::vector<T> Values(const std::string& name) const {
    const TensorView& tensor = tensors_.at(name);
    std::vector<T> values(tensor.bytes / sizeof(T));
    std::memcpy(values.data(), tensor.data, tensor.bytes);
    return values;
  }

 private:
  std::unique_ptr<SafetensorsFile> file_;
  std::map<std::string, TensorView> tensors_;
};

// log-softmax over the ids that may be chosen: those that the tokenizer names, without the
// drafter's mask. Others are -infinity.
inline std::vector<double> LogProbabilities(const float* logits, const Executor& executor) {
  const auto used = static_cast<size_t>(executor.vocabulary_used());
  const auto mask = static_cast<size_t>(executor.config().drafter.mask_token_id);
  std::vector<double> values(logits, logits + used);
  values[mask] = -INFINITY;
  double max = -INFINITY, sum = 0;
  for (const double value : values) max = std::max(max, value);
  for (const double value : values) sum += std::exp(value - max);
  for (double& value : values) value -= max + std::log(sum);
  return values;
}

}  // namespace ultraspeed::worker
