// The integer products with VNNI alone. Machines with AVX-512 but without VNNI use AVX2's.
#if defined(__x86_64__)
#include <cstddef>
#include <cstdint>
#include <utility>

#include "linear_tables.h"
// The instruction set begins here, for all that follows.
#define STAGEBEAM_FEATURES ",avx512vnni"
#include "simd_avx512.h"
#if !defined(__clang__)
#pragma GCC target("avx512vnni")
#endif

#include "integer_vnni.h"

namespace stagebeam {

// A name of its own, so that no template is shared with code for other machines.
struct SimdVnni : SimdAvx512 {
  STAGEBEAM_INLINE static inline void halves(const std::byte* line, __m512i& low, __m512i& high) {
    const __m512i words = load_words(line), mask = _mm512_set1_epi8(15);
    low = _mm512_and_si512(words, mask);
    high = _mm512_and_si512(_mm512_srli_epi16(words, 4), mask);
  }
};

namespace kernels {

template <>
struct Rounding<SimdVnni> : RoundingAvx512 {};
template <>
struct Dots<SimdVnni> : VnniDots<SimdVnni> {};

void multiply_rounded_vnni(const LinearTask& task, WeightFormat format, int64_t first,
                           int64_t end) {
  multiply_rounded_any<SimdVnni>(task, format, first, end);
}

}  // namespace kernels
}  // namespace stagebeam
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
