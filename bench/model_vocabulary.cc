#include "bench/model_vocabulary.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "bench/held_out.h"
#include "common/status_macros.h"
#include "worker/model/vocabulary.h"
#include "worker/token_bytes.h"

namespace ultraspeed::bench {

absl::StatusOr<std::shared_ptr<const grammar::Vocabulary>> LoadVocabulary(
    const std::string& model_folder, const worker::ModelConfig& config) {
  ASSIGN_OR_RETURN(const int num_tokens, worker::CountUsedTokens(model_folder, config.vocabulary));
  ASSIGN_OR_RETURN(const std::string tokenizer, ReadFile(model_folder + "/tokenizer.json"));
  ASSIGN_OR_RETURN(std::vector<std::string> bytes, worker::ReadTokenBytes(tokenizer, num_tokens));
  std::vector<int32_t> end_tokens = config.eos_token_ids;
  std::erase_if(end_tokens, [&](int32_t token) { return token < 0 || token >= num_tokens; });
  return std::make_shared<const grammar::Vocabulary>(std::move(bytes), std::move(end_tokens));
}

}  // namespace ultraspeed::bench
