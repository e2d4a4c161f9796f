// AMX's tiles: eight registers of up to 16 rows of 64 bytes, and the products of two of them.
//
// Include this in place of simd_avx512.h, in a translation unit of its own. A kernel makes a
// `Tiles` and owns the registers until that ends: no configuration outlives a kernel, so no kernel
// meets one that it did not make. Tile numbers are parts of instructions, hence template arguments.
#pragma once

#include <cstdint>

#define STAGEBEAM_FEATURES ",avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16"
#include "simd_avx512.h"
#if !defined(__clang__)
#pragma GCC target("avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16")
#endif

namespace stagebeam::amx {

inline constexpr int kRows = 16, kRowBytes = 64;
inline constexpr int kTileBytes = kRows * kRowBytes;

// The shapes of the eight tiles, as the processor reads them.
struct alignas(64) Config {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  constexpr void set(int tile, int num_rows, int bytes) {
    rows[tile] = static_cast<uint8_t>(num_rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};
static_assert(sizeof(Config) == 64);

// The compilers' own intrinsics do not say that they read memory, which these do.
class Tiles {
 public:
  explicit Tiles(const Config& config) { configure(config); }
  // Registers in use would be saved at every change of threads.
  ~Tiles() { asm volatile("tilerelease" ::: "memory"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  // Other shapes; all tiles become zero.
  void configure(const Config& config) { asm volatile("ldtilecfg %0" ::"m"(config) : "memory"); }
};

#define STAGEBEAM_TILE inline __attribute__((always_inline))

template <int kTile>
STAGEBEAM_TILE void zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
// Row i of the tile is at memory + i * stride_bytes.
template <int kTile>
STAGEBEAM_TILE void load(const void* memory, int64_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(memory), "r"(stride_bytes), "i"(kTile)
               : "memory");
}
template <int kTile>
STAGEBEAM_TILE void store(void* memory, int64_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(memory), "r"(stride_bytes), "i"(kTile)
               : "memory");
}

// sums [M, 16] += a [M, K] times b [K / n, 16, n]: n = 2 bf16 (M <= 16, K <= 32), or n = 4 int8
// with int32 sums (K <= 64). bf16 sums are float32, subnormal numbers are zeros.
template <int kSums, int kA, int kB>
STAGEBEAM_TILE void add_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
}
template <int kSums, int kA, int kB>
STAGEBEAM_TILE void add_int8() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
}
// The same with b unsigned.
template <int kSums, int kA, int kB>
STAGEBEAM_TILE void add_uint8() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
}

#undef STAGEBEAM_TILE

}  // namespace stagebeam::amx
