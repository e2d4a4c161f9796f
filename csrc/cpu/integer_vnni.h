// The integer dots with AVX-512's VNNI: four 8-bit products a lane and instruction. Include this in
// place of integer_kernels.h, in a translation unit of its own.
#pragma once

#include <cstdint>
#include <cstring>

#include "integer_avx512.h"

namespace stagebeam::kernels {

// Split makes low and high halves of bytes from a line of 4-bit weights.
template <typename Split>
struct VnniDots {
  static constexpr int kVectors = 1;
  static constexpr int kMaxRows = 8;
  static constexpr bool kIsOffset = true;
  // A sum's bits are the float that is kRoundingShift more than it, which `times` takes away.
  static constexpr int32_t kStart = kRoundingBits;
  static constexpr bool kIsWide = false;
  using Ints = __m512i;

  static inline Ints set1(int32_t x) { return _mm512_set1_epi32(x); }
  static inline Ints four(const int8_t* x) {
    int32_t bits;
    std::memcpy(&bits, x, 4);
    return _mm512_set1_epi32(bits);
  }
  template <int R>
  STAGEBEAM_INLINE static inline void add_int8(const std::byte* line, const int8_t (*x)[kGroupSize],
                                               int at, Ints (&sums)[R][1]) {
    // The instruction wants one side unsigned: w + 128.
    const __m512i w = _mm512_xor_si512(SimdAvx512::load_words(line), _mm512_set1_epi8(-128));
    STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
      sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], w, four(x[r] + at));
    }
  }
  template <int R>
  STAGEBEAM_INLINE static inline void add_int4(const std::byte* line, const int8_t (*x)[kGroupSize],
                                               int at, Ints (&sums)[R][1]) {
    __m512i low, high;
    Split::halves(line, low, high);
    STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
      sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], low, four(x[r] + at));
      sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], high, four(x[r] + at + 4));
    }
  }
  template <int R>
  STAGEBEAM_INLINE static inline void finish_int4(Ints (&)[R][1]) {}
  STAGEBEAM_INLINE static inline __m512 times(const Ints (&sums)[1], int, __m512 step) {
    // Exact below 2^104: a step has few bits.
    const __m512 shift = _mm512_mul_ps(step, _mm512_set1_ps(-kRoundingShift));
    return _mm512_fmadd_ps(_mm512_castsi512_ps(sums[0]), step, shift);
  }
};

}  // namespace stagebeam::kernels
