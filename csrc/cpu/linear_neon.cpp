#if defined(__aarch64__)
#include <cstddef>
#include <cstdint>
#include <utility>

#include "linear_tables.h"
// The instruction set begins here, for all that follows.
#include "simd_neon.h"

#include "integer_kernels.h"

namespace stagebeam::kernels {

void multiply_neon(const LinearTask& task, WeightFormat format, int64_t first, int64_t end) {
  multiply_any<SimdNeon>(task, format, first, end);
}

void multiply_rounded_neon(const LinearTask& task, WeightFormat format, int64_t first,
                           int64_t end) {
  multiply_rounded_any<SimdNeon>(task, format, first, end);
}

}  // namespace stagebeam::kernels
#endif
