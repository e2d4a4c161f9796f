// bfloat16 and IEEE half precision as bits: conversions to float32 and back, to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

namespace stagebeam {

inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float bf16_to_float(uint16_t bits) {
  return bits_to_float(uint32_t{bits} << 16);
}

inline uint16_t float_to_bf16(float x) {
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40);  // NaN stays NaN
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline float fp16_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16;
  const uint32_t rest = bits & 0x7fffu;
  if (rest >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest >= 0x400u) return bits_to_float(sign | ((rest << 13) + (112u << 23)));
  const float subnormal = static_cast<float>(rest) * 0x1p-24f;
  return sign != 0 ? -subnormal : subnormal;
}

inline uint16_t float_to_fp16(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  const uint32_t rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return uint16_t(sign | 0x7e00);
  if (rest >= 0x477ff000u) return uint16_t(sign | 0x7c00);  // rounds to infinity
  if (rest < 0x38800000u) {                                 // subnormal: count steps of 2^-24
    // Adding 0.5 leaves the count, rounded to nearest even, in the low bits.
    return uint16_t(sign | (float_to_bits(bits_to_float(rest) + 0.5f) - 0x3f000000u));
  }
  return uint16_t(sign | ((rest - (112u << 23) + 0xfffu + (rest >> 13 & 1)) >> 13));
}

}  // namespace stagebeam
