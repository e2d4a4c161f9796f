#if defined(__x86_64__)
#include <cstddef>
#include <cstdint>
#include <utility>

#include "linear_tables.h"
// The instruction set begins here, for all that follows.
#include "simd_avx512.h"

#include "linear_kernels.h"

namespace stagebeam::kernels {

void multiply_avx512(const LinearTask& task, WeightFormat format, int64_t first, int64_t end) {
  multiply_any<SimdAvx512>(task, format, first, end);
}

}  // namespace stagebeam::kernels
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
