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

template <void (*kAttendBf16)(TileSource&)>
void attend_any(TileSource& tiles) {
  const bool is_bf16 = tiles.layout().format == CacheFormat::kBfloat16;
  return is_bf16 ? kAttendBf16(tiles) : kAvx512Kernels.attend(tiles);
}

template <void (*kAttendBf16)(TileSource&)>
Kernels avx512_with() {
  Kernels table = kAvx512Kernels;
  table.attend = attend_any<kAttendBf16>;
  return table;
}

}  // namespace
#endif

const Kernels& kernels() {
#if defined(__x86_64__)
  static const bool has_bf16 = has_avx512_bf16();
  static const Kernels kBf16Kernels = avx512_with<attend_bf16_pairs>();
  static const Kernels kAmxKernels = avx512_with<attend_bf16_tiles>();
  switch (active_isa()) {
    case Isa::kAmx:
      return kAmxKernels;
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
