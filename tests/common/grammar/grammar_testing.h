// What the tests of grammars share.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "common/grammar/automaton.h"
#include "common/grammar/json_schema.h"

namespace ultraspeed::grammar {

inline std::shared_ptr<const Grammar> SchemaGrammar(absl::string_view schema) {
  const auto grammar = FromJsonSchema(schema, "schema");
  EXPECT_TRUE(grammar.ok()) << schema << " " << grammar.status();
  return grammar.ok() ? *grammar : nullptr;
}

// How many bytes of a text the grammar follows; one more if the text is whole.
inline size_t NumAccepted(const std::shared_ptr<const Grammar>& grammar, absl::string_view text) {
  Automaton automaton(grammar);
  State state = automaton.Start();
  for (size_t i = 0; i < text.size(); ++i) {
    state = automaton.Advance(state, text.substr(i, 1));
    if (state.is_dead()) return i;
  }
  return text.size() + (state.can_end() ? 1 : 0);
}

inline bool Accepts(const std::shared_ptr<const Grammar>& grammar, absl::string_view text) {
  return NumAccepted(grammar, text) == text.size() + 1;
}

inline std::string ErrorOf(absl::string_view schema) {
  const auto grammar = FromJsonSchema(schema, "schema");
  if (grammar.ok()) return "none";
  EXPECT_EQ(grammar.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(grammar.status().message());
}

}  // namespace ultraspeed::grammar
