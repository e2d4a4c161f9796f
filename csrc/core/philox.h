// Philox 4x32-10, the counter-based generator behind every random choice (Salmon et al., "Parallel
// Random Numbers: As Easy as 1, 2, 3", SC 2011; the same words as Random123).
//
// Stateless: a word depends on its key and counter alone, so a branch's tokens do not depend on the
// batch that it runs in.
#pragma once

#include <array>
#include <cstdint>

namespace stagebeam {

using PhiloxCounter = std::array<uint32_t, 4>;

// Ten rounds; `key` is Random123's key[0] in its low and key[1] in its high half.
constexpr PhiloxCounter philox4x32(uint64_t key, PhiloxCounter counter) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  auto key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{kMultiplier0} * counter[0];
    const uint64_t product1 = uint64_t{kMultiplier1} * counter[2];
    counter = {
        static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(product1),
        static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(product0)};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

// The four words of tokens 4 * quad .. 4 * quad + 3 of branch `uid` at `step`.
constexpr PhiloxCounter token_words(uint64_t seed, uint32_t step, uint64_t uid, uint32_t quad) {
  return philox4x32(seed,
                    {step, quad, static_cast<uint32_t>(uid), static_cast<uint32_t>(uid >> 32)});
}

// A word's uniform number, exact in float32: odd multiples of 2^-24, never 0 or 1.
constexpr float uniform_of(uint32_t word) {
  return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f;
}

// The uniform number of one token.
constexpr float token_uniform(uint64_t seed, uint32_t step, uint64_t uid, uint32_t token_id) {
  return uniform_of(token_words(seed, step, uid, token_id / 4)[token_id % 4]);
}

}  // namespace stagebeam
