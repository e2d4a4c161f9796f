#include <cstddef>
#include <cstdint>
#include <utility>

#include "linear_tables.h"
// The instruction set begins here, for all that follows.
#include "simd_scalar.h"

#include "integer_kernels.h"

namespace stagebeam::kernels {

void multiply_scalar(const LinearTask& task, WeightFormat format, int64_t first, int64_t end) {
  multiply_any<SimdScalar>(task, format, first, end);
}

void multiply_rounded_scalar(const LinearTask& task, WeightFormat format, int64_t first,
                             int64_t end) {
  multiply_rounded_any<SimdScalar>(task, format, first, end);
}

}  // namespace stagebeam::kernels
