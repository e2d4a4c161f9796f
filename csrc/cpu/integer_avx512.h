// Rounding rows to int8 in AVX-512, 16 or 4 groups at a time: the same bits as the portable way's.
//
// Include this in place of integer_kernels.h, in a translation unit of its own.
#pragma once

#include <cstdint>
#include <cstring>

#include "integer_kernels.h"

namespace stagebeam::kernels {

// Lane i of the result is what all lanes of x[i] make together.
template <typename Join>
STAGEBEAM_INLINE inline __m512i join_each(__m512i (&x)[16], Join join) {
  STAGEBEAM_UNROLL for (int i = 0; i < 8; ++i) {  // lanes of x[i] and x[i + 8] in turns
    x[i] = join(_mm512_unpacklo_epi32(x[i], x[i + 8]), _mm512_unpackhi_epi32(x[i], x[i + 8]));
  }
  STAGEBEAM_UNROLL for (int i = 0; i < 4; ++i) {  // of i, i + 4, i + 8, i + 12
    x[i] = join(_mm512_unpacklo_epi32(x[i], x[i + 4]), _mm512_unpackhi_epi32(x[i], x[i + 4]));
  }
  STAGEBEAM_UNROLL for (int i = 0; i < 2; ++i) {
    x[i] = join(_mm512_shuffle_i32x4(x[i], x[i + 2], 0x88),
                _mm512_shuffle_i32x4(x[i], x[i + 2], 0xdd));
  }
  const __m512i all =
      join(_mm512_shuffle_i32x4(x[0], x[1], 0x88), _mm512_shuffle_i32x4(x[0], x[1], 0xdd));
  // Its lanes are of 0, 4, 8, 12, 2, 6, ...
  const __m512i order = _mm512_setr_epi32(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15);
  return _mm512_permutexvar_epi32(order, all);
}

// The same of four.
template <typename Join>
STAGEBEAM_INLINE inline __m512i join_each(__m512i (&x)[4], Join join) {
  STAGEBEAM_UNROLL for (int i = 0; i < 2; ++i) {
    x[i] = join(_mm512_unpacklo_epi32(x[i], x[i + 2]), _mm512_unpackhi_epi32(x[i], x[i + 2]));
  }
  __m512i all = join(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
  all = join(all, _mm512_shuffle_i32x4(all, all, 0x4e));
  return join(all, _mm512_shuffle_i32x4(all, all, 0xb1));
}

// Lanes 2 i and 2 i + 1 of the result are the sums of x[i]'s lower and upper lanes.
STAGEBEAM_INLINE inline __m512i add_halves(__m512i (&x)[8]) {
  STAGEBEAM_UNROLL for (int i = 0; i < 4; ++i) {
    x[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(x[i], x[i + 4]),
                            _mm512_unpackhi_epi32(x[i], x[i + 4]));
  }
  STAGEBEAM_UNROLL for (int i = 0; i < 2; ++i) {
    x[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(x[i], x[i + 2]),
                            _mm512_unpackhi_epi32(x[i], x[i + 2]));
  }
  const __m512i all = _mm512_add_epi32(_mm512_shuffle_i32x4(x[0], x[1], 0x88),
                                       _mm512_shuffle_i32x4(x[0], x[1], 0xdd));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, all);
}
STAGEBEAM_INLINE inline __m512i add_halves(__m512i (&x)[2]) {
  __m512i all =
      _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
  all = _mm512_add_epi32(all, _mm512_shuffle_epi32(all, _MM_PERM_BADC));
  all = _mm512_add_epi32(all, _mm512_shuffle_i32x4(all, all, 0xb1));
  const __m512i order = _mm512_setr_epi32(0, 8, 1, 9, 0, 8, 1, 9, 0, 8, 1, 9, 0, 8, 1, 9);
  return _mm512_permutexvar_epi32(order, all);
}

struct RoundingAvx512 {
  // Of the row, or the next behind it: half of the lines are another thread's, which wrote them.
  static constexpr int64_t kFloatsAhead = 512;

  template <typename Place, typename Note>
  static void row(const float* x, int64_t count, float factor, Place place, Note note) {
    const int64_t groups = (count + kGroupSize - 1) / kGroupSize;
    for (int64_t g = 0; g < groups;) {
      const int64_t left = groups - g;
      if (left > 4) {
        some<16>(x, count, g, left < 16 ? static_cast<int>(left) : 16, factor, place, note);
        g += 16;
      } else {
        some<4>(x, count, g, static_cast<int>(left), factor, place, note);
        g += 4;
      }
    }
  }

 private:
  // Groups first .. first + groups - 1, at most kGroups of them.
  template <int kGroups, typename Place, typename Note>
  static void some(const float* x, int64_t count, int64_t first, int groups, float factor,
                   Place place, Note note) {
    const float* source = x + first * kGroupSize;
    // Numbers from the last group on.
    const int64_t left = count - (first + groups - 1) * kGroupSize;
    const bool is_cut = left < kGroupSize;
    alignas(64) float last[kGroupSize] = {};
    if (is_cut) {
      std::memcpy(last, source + (groups - 1) * kGroupSize,
                  sizeof(float) * static_cast<size_t>(left));
    }
    auto group_at = [&](int g) {
      return is_cut && g == groups - 1 ? last : source + g * kGroupSize;
    };
    __m512i most_of[kGroups];
    STAGEBEAM_UNROLL for (int g = 0; g < kGroups; ++g) {
      most_of[g] = _mm512_setzero_si512();
      if (g < groups) {
        const float* at = group_at(g);
        most_of[g] = _mm512_max_epi32(magnitude(at), magnitude(at + 16));
      }
    }
    const __m512i most_bits =
        join_each(most_of, [](__m512i a, __m512i b) { return _mm512_max_epi32(a, b); });
    const __m512 most = _mm512_castsi512_ps(most_bits);
    const __mmask16 is_finite = _mm512_cmplt_epi32_mask(most_bits, _mm512_set1_epi32(0x7f800000));
    const __mmask16 has_inverse =
        _mm512_mask_cmp_ps_mask(is_finite, most, _mm512_set1_ps(0x1p-119f), _CMP_GT_OQ);
    alignas(64) float inverses[16], scales[16];
    alignas(64) int32_t totals[16];
    const __m512 range = _mm512_set1_ps(127.0f);
    _mm512_store_ps(inverses, _mm512_maskz_div_ps(has_inverse, range, most));
    _mm512_store_ps(scales, _mm512_mask_blend_ps(
                                is_finite, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)),
                                _mm512_mul_ps(_mm512_div_ps(most, range), _mm512_set1_ps(factor))));
    // Two groups at a time become 64 bytes: less shuffling, and half as many sums.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i sums[kGroups / 2];
    STAGEBEAM_UNROLL for (int pair = 0; pair < kGroups / 2; ++pair) {
      sums[pair] = _mm512_setzero_si512();
      const int g = 2 * pair;
      if (g < groups) {
        const bool is_lone = g + 1 == groups;
        const float *a = group_at(g), *b = is_lone ? a : group_at(g + 1);
        STAGEBEAM_UNROLL for (int i = 0; i < 4; ++i) __builtin_prefetch(a + kFloatsAhead + i * 16);
        const __m512 x = _mm512_set1_ps(inverses[g]), y = _mm512_set1_ps(inverses[g + 1]);
        const __m512i q = _mm512_permutexvar_epi32(
            order, _mm512_packs_epi16(_mm512_packs_epi32(round(a, x), round(a + 16, x)),
                                      _mm512_packs_epi32(round(b, y), round(b + 16, y))));
        sums[pair] = _mm512_dpbusd_epi32(sums[pair], _mm512_set1_epi8(1), q);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(place(first + g)),
                            _mm512_castsi512_si256(q));
        if (!is_lone) {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(place(first + g + 1)),
                              _mm512_extracti64x4_epi64(q, 1));
        }
      }
    }
    _mm512_store_si512(totals, add_halves(sums));
    if (is_finite != 0xffff) {
      for (int g = 0; g < groups; ++g) {
        if (is_finite >> g & 1) continue;
        std::memset(place(first + g), 0, kGroupSize);
        totals[g] = 0;
      }
    }
    for (int g = 0; g < groups; ++g) note(first + g, scales[g], totals[g]);
  }

  STAGEBEAM_INLINE static inline __m512i magnitude(const float* x) {
    return _mm512_and_si512(_mm512_loadu_si512(x), _mm512_set1_epi32(0x7fffffff));
  }
  STAGEBEAM_INLINE static inline __m512i round(const float* x, __m512 inverse) {
    const __m512 shifted =
        _mm512_fmadd_ps(_mm512_loadu_ps(x), inverse, _mm512_set1_ps(kRoundingShift));
    return _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(kRoundingBits));
  }
};

}  // namespace stagebeam::kernels
