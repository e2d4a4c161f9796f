#include "tag_matcher.h"

#include <limits>
#include <stdexcept>

namespace stagebeam {
namespace {

constexpr int kNumBytes = 256;
constexpr int16_t kNoState = -1;

}  // namespace

// The byte automaton, [num_states, 256]: accept states are absorbing. Fills accept_tag_.
std::vector<int16_t> TagMatcher::compile_bytes(const std::vector<std::string>& tags) {
  std::vector<int16_t> next(kNumBytes, kNoState);
  accept_tag_.assign(1, -1);
  for (size_t tag = 0; tag < tags.size(); ++tag) {
    if (tags[tag].empty()) {
      throw std::invalid_argument("TagMatcher: expected tags of at least one byte, got tag " +
                                  std::to_string(tag) + " empty");
    }
    size_t state = 0;
    for (unsigned char byte : tags[tag]) {
      if (next[state * kNumBytes + byte] == kNoState) {
        if (accept_tag_.size() > std::numeric_limits<int16_t>::max()) {
          throw std::invalid_argument("TagMatcher: expected tags of at most 32767 bytes together");
        }
        next[state * kNumBytes + byte] = static_cast<int16_t>(accept_tag_.size());
        accept_tag_.push_back(-1);
        next.resize(next.size() + kNumBytes, kNoState);
      }
      state = next[state * kNumBytes + byte];
    }
    if (accept_tag_[state] >= 0) {
      throw std::invalid_argument("TagMatcher: expected different tags, got '" + tags[tag] +
                                  "' twice");
    }
    accept_tag_[state] = static_cast<int32_t>(tag);
  }

  // Breadth first, so that a state's failure link, its longest proper suffix in the trie, is done
  // before the state itself.
  std::vector<int16_t> failure(accept_tag_.size(), 0);
  std::vector<int16_t> queue{0};
  for (size_t head = 0; head < queue.size(); ++head) {
    const int16_t state = queue[head], suffix = failure[state];
    if (accept_tag_[state] < 0) accept_tag_[state] = accept_tag_[suffix];
    for (int byte = 0; byte < kNumBytes; ++byte) {
      int16_t& to = next[state * kNumBytes + byte];
      const int16_t fallback = state == 0 ? int16_t{0} : next[suffix * kNumBytes + byte];
      if (to == kNoState) {
        to = fallback;
      } else {
        failure[to] = fallback;
        queue.push_back(to);
      }
    }
  }
  for (size_t state = 0; state < accept_tag_.size(); ++state) {
    if (accept_tag_[state] < 0) continue;
    for (int byte = 0; byte < kNumBytes; ++byte) {
      next[state * kNumBytes + byte] = static_cast<int16_t>(state);
    }
  }
  return next;
}

TagMatcher::TagMatcher(const std::vector<std::string>& tags,
                       const std::vector<std::optional<std::string>>& token_bytes)
    : vocab_size_(static_cast<int64_t>(token_bytes.size())) {
  if (tags.empty()) throw std::invalid_argument("TagMatcher: expected at least one tag, got none");
  const std::vector<int16_t> next = compile_bytes(tags);
  table_.resize(num_states() * vocab_size_);
  for (int64_t start = 0; start < num_states(); ++start) {
    int16_t* row = table_.data() + start * vocab_size_;
    for (int64_t token = 0; token < vocab_size_; ++token) {
      auto state = static_cast<int16_t>(start);
      if (token_bytes[token]) {
        for (unsigned char byte : *token_bytes[token]) state = next[state * kNumBytes + byte];
      } else if (accept_tag_[start] < 0) {
        state = 0;
      }
      row[token] = state;
    }
  }
}

}  // namespace stagebeam
