// A group's rounding to int8 in AVX-512, the same bits as the portable one's.
//
// Include this after integer_kernels.h, in a translation unit of its own.
#pragma once

#include <cstdint>

#include "integer_kernels.h"

namespace stagebeam::kernels {

template <typename S>
struct RoundingAvx512 {
  STAGEBEAM_INLINE static inline RoundedGroup run(const float* x, int8_t* q) {
    const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
    const __m512i sign = _mm512_set1_epi32(0x7fffffff);
    const int32_t most_bits = _mm512_reduce_max_epi32(
        _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(low), sign),
                         _mm512_and_si512(_mm512_castps_si512(high), sign)));
    RoundedGroup group{bits_to_float(static_cast<uint32_t>(most_bits)), 0};
    const __m512 inverse = _mm512_set1_ps(RoundedGroup::inverse(group.most));
    const __m512i a = round(low, inverse), b = round(high, inverse);
    const auto is_finite = static_cast<__mmask16>(group.is_finite() ? 0xffff : 0);
    auto* out = reinterpret_cast<__m128i*>(q);
    _mm_storeu_si128(out, _mm512_maskz_cvtepi32_epi8(is_finite, a));
    _mm_storeu_si128(out + 1, _mm512_maskz_cvtepi32_epi8(is_finite, b));
    group.sum = group.is_finite() ? _mm512_reduce_add_epi32(_mm512_add_epi32(a, b)) : 0;
    return group;
  }

 private:
  STAGEBEAM_INLINE static inline __m512i round(__m512 x, __m512 inverse) {
    const __m512 shifted = _mm512_fmadd_ps(x, inverse, _mm512_set1_ps(kRoundingShift));
    return _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(0x4b400000));
  }
};

}  // namespace stagebeam::kernels
