// The names that the kernels are written in, in plain C++: a vector is an array of 16 numbers.
//
// Every Simd* struct has these. `fma` rounds once everywhere but here, where a machine without the
// instruction would take hundreds of cycles: so the SIMD sets give one another's bits, and this one
// its own.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"

namespace stagebeam {

struct SimdScalar {
  static constexpr int kWidth = 16;        // numbers in a vector
  static constexpr int kNumRegisters = 0;  // no vector registers to plan with
  struct Float {
    float v[kWidth];
  };
  struct Word {  // kWidth words of 32 bits
    uint32_t v[kWidth];
  };

  template <typename F>
  static inline Float map(F&& f) {
    Float out;
    for (int i = 0; i < kWidth; ++i) out.v[i] = f(i);
    return out;
  }

  static inline Float zero() { return set1(0); }
  static inline Float set1(float x) {
    return map([&](int) { return x; });
  }
  static inline Float load(const float* p) {  // any alignment, as all loads and stores
    Float out;
    std::memcpy(out.v, p, sizeof out.v);
    return out;
  }
  static inline void store(float* p, Float x) { std::memcpy(p, x.v, sizeof x.v); }
  static inline Float add(Float a, Float b) {
    return map([&](int i) { return a.v[i] + b.v[i]; });
  }
  static inline Float sub(Float a, Float b) {
    return map([&](int i) { return a.v[i] - b.v[i]; });
  }
  static inline Float mul(Float a, Float b) {
    return map([&](int i) { return a.v[i] * b.v[i]; });
  }
  static inline Float div(Float a, Float b) {
    return map([&](int i) { return a.v[i] / b.v[i]; });
  }
  static inline Float min(Float a, Float b) {
    return map([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static inline Float max(Float a, Float b) {
    return map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static inline Float fma(Float a, Float b, Float c) {  // a * b + c
    return map([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }

  static inline Word load_words(const void* p) {
    Word out;
    std::memcpy(out.v, p, sizeof out.v);
    return out;
  }
  static inline Float as_float(Word w) {
    return map([&](int i) { return bits_to_float(w.v[i]); });
  }
  // x * 2^n, where n stands in the low bits of a float's mantissa (see exp_approx).
  static inline Float shift_exponent(Float x, Float n) {
    return map([&](int i) {
      return bits_to_float(float_to_bits(x.v[i]) + (float_to_bits(n.v[i]) << 23));
    });
  }

  // kWidth neighbouring numbers of a narrow type.
  static inline Float load_bf16(const uint16_t* p) {
    return map([&](int i) { return bf16_to_float(p[i]); });
  }
  static inline Float load_fp16(const uint16_t* p) {
    return map([&](int i) { return fp16_to_float(p[i]); });
  }
  static inline Float load_int8(const int8_t* p) {
    return map([&](int i) { return static_cast<float>(p[i]); });
  }

  // The number in the given part of each word, the lowest part being 0.
  template <int kHalf>
  static inline Float bf16_of(Word w) {
    return map([&](int i) { return bf16_to_float(uint16_t(w.v[i] >> (16 * kHalf))); });
  }
  template <int kByte>
  static inline Float int8_of(Word w) {
    return map([&](int i) { return static_cast<float>(int8_t(w.v[i] >> (8 * kByte))); });
  }
  template <int kNibble>
  static inline Float uint4_of(Word w) {
    return map([&](int i) { return static_cast<float>(w.v[i] >> (4 * kNibble) & 15); });
  }
};

}  // namespace stagebeam
