// AVX2's integer dots: 16-bit multiply-adds for int8 weights, which cannot overflow, 8-bit ones for
// 4-bit weights, where eight pairs of at most 2 * 15 * 127 still fit in 16 bits.
//
// Include this after simd_avx2.h, before integer_kernels.h's templates are used.
#pragma once

#include "integer_kernels.h"

namespace stagebeam::kernels {

template <>
struct Dots<SimdAvx2> {
  static constexpr int kVectors = 2;
  static constexpr int kMaxRows = 4;
  static constexpr bool kIsOffset = false;
  static constexpr int32_t kStart = 0;
  static constexpr bool kIsWide = true;
  using Ints = __m256i;

  static inline Ints set1(int32_t x) { return _mm256_set1_epi32(x); }
  static inline Ints pair(const void* x) {
    int32_t bits;
    std::memcpy(&bits, x, 4);
    return _mm256_set1_epi32(bits);
  }
  template <int R>
  STAGEBEAM_INLINE static inline void add_int8(const std::byte* line,
                                               const int16_t (*x)[kGroupSize], int at,
                                               Ints (&sums)[R][2]) {
    STAGEBEAM_UNROLL for (int v = 0; v < 2; ++v) {
      const __m256i words = SimdAvx2::load_words(line + v * 32);
      const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(words, 8), 8);
      const __m256i odd = _mm256_srai_epi16(words, 8);
      STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
        const __m256i low = _mm256_madd_epi16(even, pair(x[r] + at));
        const __m256i high = _mm256_madd_epi16(odd, pair(x[r] + at + 2));
        sums[r][v] = _mm256_add_epi32(sums[r][v], _mm256_add_epi32(low, high));
      }
    }
  }
  // Sums are 16-bit until finish_int4.
  template <int R>
  STAGEBEAM_INLINE static inline void add_int4(const std::byte* line, const int8_t (*x)[kGroupSize],
                                               int at, Ints (&sums)[R][2]) {
    const __m256i mask = _mm256_set1_epi8(15);
    STAGEBEAM_UNROLL for (int v = 0; v < 2; ++v) {
      const __m256i words = SimdAvx2::load_words(line + v * 32);
      const __m256i low = _mm256_and_si256(words, mask);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(words, 4), mask);
      STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
        const __m256i first = _mm256_maddubs_epi16(low, pair(x[r] + at));
        const __m256i second = _mm256_maddubs_epi16(high, pair(x[r] + at + 4));
        sums[r][v] = _mm256_add_epi16(sums[r][v], _mm256_add_epi16(first, second));
      }
    }
  }
  template <int R>
  STAGEBEAM_INLINE static inline void finish_int4(Ints (&sums)[R][2]) {
    const __m256i ones = _mm256_set1_epi16(1);
    STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
      STAGEBEAM_UNROLL for (int v = 0; v < 2; ++v) {
        sums[r][v] = _mm256_madd_epi16(sums[r][v], ones);
      }
    }
  }
  STAGEBEAM_INLINE static inline __m256 times(const Ints (&sums)[2], int i, __m256 step) {
    return _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i]), step);
  }
};

}  // namespace stagebeam::kernels
