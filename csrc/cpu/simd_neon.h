// AArch64's NEON behind the names that the kernels are written in (see simd_scalar.h). Compiled by
// readers of this project on that machine only: never run where it was written.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace stagebeam {

struct SimdNeon {
  static constexpr int kWidth = 4;
  static constexpr int kNumRegisters = 32;
  using Float = float32x4_t;
  using Word = uint32x4_t;

  static inline Float zero() { return vdupq_n_f32(0); }
  static inline Float set1(float x) { return vdupq_n_f32(x); }
  static inline Float load(const float* p) { return vld1q_f32(p); }
  static inline void store(float* p, Float x) { vst1q_f32(p, x); }
  static inline Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static inline Float sub(Float a, Float b) { return vsubq_f32(a, b); }
  static inline Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  static inline Float div(Float a, Float b) { return vdivq_f32(a, b); }
  static inline Float min(Float a, Float b) { return vminq_f32(a, b); }
  static inline Float max(Float a, Float b) { return vmaxq_f32(a, b); }
  static inline Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }

  static inline Word load_words(const void* p) {
    return vreinterpretq_u32_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
  }
  static inline Float as_float(Word w) { return vreinterpretq_f32_u32(w); }
  static inline Float shift_exponent(Float x, Float n) {
    return as_float(vaddq_u32(vreinterpretq_u32_f32(x), vshlq_n_u32(vreinterpretq_u32_f32(n), 23)));
  }

  static inline Float load_bf16(const uint16_t* p) {
    return as_float(vshll_n_u16(vld1_u16(p), 16));
  }
  static inline Float load_fp16(const uint16_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
  }
  static inline Float load_int8(const int8_t* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof word);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(word)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
  }

  template <int kHalf>
  static inline Float bf16_of(Word w) {
    if constexpr (kHalf == 0) return as_float(vshlq_n_u32(w, 16));
    return as_float(vandq_u32(w, vdupq_n_u32(0xffff0000u)));
  }
  template <int kByte>
  static inline Float int8_of(Word w) {
    if constexpr (kByte < 3) w = vshlq_n_u32(w, 24 - 8 * kByte);
    return vcvtq_f32_s32(vshrq_n_s32(vreinterpretq_s32_u32(w), 24));
  }
  template <int kNibble>
  static inline Float uint4_of(Word w) {
    if constexpr (kNibble > 0) w = vshrq_n_u32(w, 4 * kNibble);
    if constexpr (kNibble < 7) w = vandq_u32(w, vdupq_n_u32(15));
    return vcvtq_f32_u32(w);
  }
};

}  // namespace stagebeam
