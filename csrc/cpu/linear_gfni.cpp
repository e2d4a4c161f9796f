// The integer products with VNNI and GFNI, which shifts bits within bytes: one instruction less for
// a line of 4-bit weights. At 8 rows it is instructions that count, not memory.
#if defined(__x86_64__)
#include <cstddef>
#include <cstdint>
#include <utility>

#include "linear_tables.h"
// The instruction set begins here, for all that follows.
#define STAGEBEAM_FEATURES ",avx512vnni,gfni"
#include "simd_avx512.h"
#if !defined(__clang__)
#pragma GCC target("avx512vnni,gfni")
#endif

#include "integer_vnni.h"

namespace stagebeam {

// A name of its own, so that no template is shared with code for other machines.
struct SimdGfni : SimdAvx512 {
  STAGEBEAM_INLINE static inline void halves(const std::byte* line, __m512i& low, __m512i& high) {
    __m512i words = load_words(line);
    asm("" : "+v"(words));  // or it is loaded twice
    low = _mm512_and_si512(words, _mm512_set1_epi8(15));
    // Bit i of a byte is bit i + 4 of the line's.
    high = _mm512_gf2p8affine_epi64_epi8(words, _mm512_set1_epi64(0x1020408000000000), 0);
  }
};

namespace kernels {

template <>
struct Rounding<SimdGfni> : RoundingAvx512 {};
template <>
struct Dots<SimdGfni> : VnniDots<SimdGfni> {};

void multiply_rounded_gfni(const LinearTask& task, WeightFormat format, int64_t first,
                           int64_t end) {
  multiply_rounded_any<SimdGfni>(task, format, first, end);
}

}  // namespace kernels
}  // namespace stagebeam
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
