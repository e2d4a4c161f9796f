#include "kernels.h"

#include "isa.h"

namespace stagebeam::cpu {

int64_t element_bytes(CacheFormat format) {
  switch (format) {
    case CacheFormat::kFloat32:
      return 4;
    case CacheFormat::kInt8:
      return 1;
    default:
      return 2;
  }
}

const Kernels& kernels() {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::kAvx512:
      return kAvx512Kernels;
    case Isa::kAvx2:
      return kAvx2Kernels;
    default:
      break;
  }
#endif
  return kGenericKernels;
}

}  // namespace stagebeam::cpu
