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

#if defined(__x86_64__)
namespace {

void attend_avx512(const Tile& tile) {
  const bool is_bf16 = tile.layout->format == CacheFormat::kBfloat16;
  return is_bf16 ? attend_bf16_pairs(tile) : kAvx512Kernels.attend(tile);
}

Kernels with_bf16_pairs() {
  Kernels table = kAvx512Kernels;
  table.attend = attend_avx512;
  return table;
}

}  // namespace
#endif

const Kernels& kernels() {
#if defined(__x86_64__)
  static const bool has_bf16 = has_avx512_bf16();
  static const Kernels kBf16Kernels = with_bf16_pairs();
  switch (active_isa()) {
    case Isa::kAmx:
    case Isa::kAvx512:
      return has_bf16 ? kBf16Kernels : kAvx512Kernels;
    case Isa::kAvx2:
      return kAvx2Kernels;
    default:
      break;
  }
#endif
  return kGenericKernels;
}

}  // namespace stagebeam::cpu
