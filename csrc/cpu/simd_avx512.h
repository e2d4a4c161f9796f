// AVX-512 F + BW + DQ + VL behind the names that the kernels are written in (see simd_scalar.h).
//
// Include this last in a translation unit of its own, as simd_avx2.h. What else the unit uses it
// asks of clang in STAGEBEAM_FEATURES (",name" each), whose attributes do not add up, and of g++ by
// one more pragma behind this include.
#pragma once

#include <immintrin.h>

#include <cstdint>

#ifndef STAGEBEAM_FEATURES
#define STAGEBEAM_FEATURES ""
#endif
#if defined(__clang__)
#pragma clang attribute push(                                                            \
    __attribute__((                                                                      \
        target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl" STAGEBEAM_FEATURES))), \
    apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
// g++ 12 takes _mm512_undefined_epi32() inside its own intrinsics for a bug of their caller.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace stagebeam {

struct SimdAvx512 {
  static constexpr int kWidth = 16;
  static constexpr int kNumRegisters = 32;
  using Float = __m512;
  using Word = __m512i;

  static inline Float zero() { return _mm512_setzero_ps(); }
  static inline Float set1(float x) { return _mm512_set1_ps(x); }
  static inline Float load(const float* p) { return _mm512_loadu_ps(p); }
  static inline void store(float* p, Float x) { _mm512_storeu_ps(p, x); }
  static inline Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static inline Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static inline Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static inline Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static inline Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  static inline Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static inline Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }

  static inline Word load_words(const void* p) { return _mm512_loadu_si512(p); }
  static inline Float as_float(Word w) { return _mm512_castsi512_ps(w); }
  static inline Float shift_exponent(Float x, Float n) {
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
  }

  static inline Float load_bf16(const uint16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static inline Float load_fp16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static inline Float load_int8(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  }

  template <int kHalf>
  static inline Float bf16_of(Word w) {
    if constexpr (kHalf == 0) return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
    return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(int32_t(0xffff0000u))));
  }
  template <int kByte>
  static inline Float int8_of(Word w) {
    if constexpr (kByte < 3) w = _mm512_slli_epi32(w, 24 - 8 * kByte);
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(w, 24));
  }
  template <int kNibble>
  static inline Float uint4_of(Word w) {
    if constexpr (kNibble > 0) w = _mm512_srli_epi32(w, 4 * kNibble);
    if constexpr (kNibble < 7) w = _mm512_and_si512(w, _mm512_set1_epi32(15));
    return _mm512_cvtepi32_ps(w);
  }
};

}  // namespace stagebeam
