// Closing tags compiled to a table over token ids.
//
// All tags go into one byte trie with failure links (Aho and Corasick 1975); walking every token's
// bytes from every state gives next_state[state, token]. It knows no tokenizer: a token is its
// bytes, or nothing for a special token. Invariant: from state 0, the state after some tokens is an
// accept state exactly when a tag's bytes occur in the bytes since the last special token, and it
// names the tag that was completed first (of those that end at one byte, the longest).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace stagebeam {

class TagMatcher {
 public:
  // A token without bytes (nullopt) goes back to state 0; an empty token keeps the state.
  TagMatcher(const std::vector<std::string>& tags,
             const std::vector<std::optional<std::string>>& token_bytes);

  int64_t num_states() const { return static_cast<int64_t>(accept_tag_.size()); }
  int64_t vocab_size() const { return vocab_size_; }
  const int16_t* table() const { return table_.data(); }            // [num_states, vocab_size]
  const int32_t* accept_tag() const { return accept_tag_.data(); }  // [num_states], -1 or tag

 private:
  std::vector<int16_t> compile_bytes(const std::vector<std::string>& tags);

  int64_t vocab_size_;
  std::vector<int32_t> accept_tag_;
  std::vector<int16_t> table_;
};

}  // namespace stagebeam
