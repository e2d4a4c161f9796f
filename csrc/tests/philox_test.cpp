#include "../core/philox.h"

#include "check.h"

using namespace stagebeam;

// Random123's kat_vectors, philox4x32 with 10 rounds.
TEST(philox_known_answers) {
  static_assert(philox4x32(0, {0, 0, 0, 0}) ==
                PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  constexpr uint32_t kOnes = 0xffffffff;
  CHECK((philox4x32(~uint64_t{0}, {kOnes, kOnes, kOnes, kOnes}) ==
         PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK((philox4x32(0x299f31d0'a4093822, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}) ==
         PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(uniforms_stay_inside_the_unit_interval) {
  CHECK(uniform_of(0) == 0x1p-24f);
  CHECK(uniform_of(0xffffffff) == 1.0f - 0x1p-24f);
  CHECK(uniform_of(511) == uniform_of(0) && uniform_of(512) == 3 * 0x1p-24f);
}

TEST(a_tokens_uniform_is_one_word_of_its_quad) {
  const uint64_t seed = 0x0123456789abcdef, uid = 0xfedcba9876543210;
  const PhiloxCounter words = philox4x32(seed, {7, 25, 0x76543210, 0xfedcba98});
  for (uint32_t i = 0; i < 4; ++i) {
    CHECK(token_uniform(seed, 7, uid, 100 + i) == uniform_of(words[i]));
  }
}
