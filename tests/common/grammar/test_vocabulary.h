// Vocabularies for the tests of masks.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/grammar/vocabulary.h"

namespace ultraspeed::grammar {

// The bundled model's tokens; those that are special have no bytes, <|im_end|> ends a text.
const std::shared_ptr<const Vocabulary>& BundledVocabulary();

// As large as the served model's: every byte, then words, numbers, white space, punctuation and
// pieces of other scripts in the ways in which byte-level tokenizers cut them; the last token ends
// a text. The same at every call.
std::shared_ptr<const Vocabulary> LargeVocabulary();

// The tokens of a text, the longest one first at every place.
std::vector<int32_t> Tokenize(const Vocabulary& vocabulary, const std::string& text);

}  // namespace ultraspeed::grammar
