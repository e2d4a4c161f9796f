// AVX2 + FMA + F16C behind the names that the kernels are written in (see simd_scalar.h).
//
// Include this last in a translation unit of its own: from here to the end of the file the compiler
// may use these instructions, so nothing that other units share may be instantiated after it.
#pragma once

#include <immintrin.h>

#include <cstdint>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

namespace stagebeam {

struct SimdAvx2 {
  static constexpr int kWidth = 8;
  static constexpr int kNumRegisters = 16;
  using Float = __m256;
  using Word = __m256i;

  static inline Float zero() { return _mm256_setzero_ps(); }
  static inline Float set1(float x) { return _mm256_set1_ps(x); }
  static inline Float load(const float* p) { return _mm256_loadu_ps(p); }
  static inline void store(float* p, Float x) { _mm256_storeu_ps(p, x); }
  static inline Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static inline Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static inline Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static inline Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  static inline Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static inline Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static inline Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }

  static inline Word load_words(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static inline Float as_float(Word w) { return _mm256_castsi256_ps(w); }
  static inline Float shift_exponent(Float x, Float n) {
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
  }

  static inline Float load_bf16(const uint16_t* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static inline Float load_fp16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static inline Float load_int8(const int8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }

  template <int kHalf>
  static inline Float bf16_of(Word w) {
    if constexpr (kHalf == 0) return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
    return _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(int32_t(0xffff0000u))));
  }
  template <int kByte>
  static inline Float int8_of(Word w) {
    if constexpr (kByte < 3) w = _mm256_slli_epi32(w, 24 - 8 * kByte);
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(w, 24));
  }
  template <int kNibble>
  static inline Float uint4_of(Word w) {
    if constexpr (kNibble > 0) w = _mm256_srli_epi32(w, 4 * kNibble);
    if constexpr (kNibble < 7) w = _mm256_and_si256(w, _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(w);
  }
};

}  // namespace stagebeam
