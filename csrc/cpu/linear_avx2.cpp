#if defined(__x86_64__)
#include <cstddef>
#include <cstdint>
#include <utility>

#include "linear_tables.h"
// The instruction set begins here, for all that follows.
#include "simd_avx2.h"

#include "integer_avx2.h"

namespace stagebeam::kernels {

void multiply_avx2(const LinearTask& task, WeightFormat format, int64_t first, int64_t end) {
  multiply_any<SimdAvx2>(task, format, first, end);
}

void multiply_rounded_avx2(const LinearTask& task, WeightFormat format, int64_t first,
                           int64_t end) {
  multiply_rounded_any<SimdAvx2>(task, format, first, end);
}

}  // namespace stagebeam::kernels
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
