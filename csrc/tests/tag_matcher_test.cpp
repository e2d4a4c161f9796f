#include "../core/tag_matcher.h"

#include "check.h"

using namespace stagebeam;

namespace {

using Pieces = std::vector<std::optional<std::string>>;

int32_t match(const TagMatcher& matcher, const std::vector<int>& tokens) {
  int16_t state = 0;
  for (int token : tokens) state = matcher.table()[state * matcher.vocab_size() + token];
  return matcher.accept_tag()[state];
}

}  // namespace

TEST(four_tags_make_39_states) {
  const TagMatcher matcher({"</SUMMARY>", "</CAPTION>", "</REASONING>", "</CONCLUSION>"},
                           Pieces(3, "x"));
  CHECK(matcher.num_states() == 39);
  CHECK(matcher.vocab_size() == 3);
}

TEST(tags_match_across_and_inside_tokens) {
  const TagMatcher matcher({"</A>", "</B>"},
                           Pieces{"<", "/", "A", ">", "x</B>\n\n", "</", "B>y", std::nullopt, ""});
  CHECK(match(matcher, {0, 1, 2, 3}) == 0);
  CHECK(match(matcher, {4}) == 1);
  CHECK(match(matcher, {0, 5, 2, 3}) == 0);     // <</A>
  CHECK(match(matcher, {5, 2, 5, 6}) == 1);     // </A</B>y
  CHECK(match(matcher, {5, 7, 2, 3}) == -1);    // a special token resets
  CHECK(match(matcher, {5, 8, 2, 8, 3}) == 0);  // an empty one does not
  CHECK(match(matcher, {5, 2, 3, 7, 4}) == 0);  // accept states are absorbing
  CHECK(match(matcher, {4, 0, 1, 2, 3}) == 1);
}

TEST(the_first_completed_tag_wins_and_then_the_longest) {
  CHECK(match(TagMatcher({"abcd", "bc"}, Pieces{"abcd"}), {0}) == 1);
  CHECK(match(TagMatcher({"bc", "abc"}, Pieces{"abc"}), {0}) == 1);
  CHECK(match(TagMatcher({"bc", "abc"}, Pieces{"xbc"}), {0}) == 0);
}

TEST(bytes_above_127_and_zero_match) {
  CHECK(match(TagMatcher({std::string("\xff\0\x80", 3)}, Pieces{"\xff", std::string("\0\x80", 2)}),
              {0, 1}) == 0);
}

TEST(bad_tags_are_refused) {
  CHECK_THROWS(TagMatcher({}, Pieces{"a"}));
  CHECK_THROWS(TagMatcher({""}, Pieces{"a"}));
  CHECK_THROWS(TagMatcher({"a", "a"}, Pieces{"a"}));
  CHECK_THROWS(TagMatcher({std::string(40000, 'a')}, Pieces{"a"}));
  CHECK(TagMatcher({std::string(32767, 'a')}, Pieces{"a"}).num_states() == 32768);
}
