// What linear.cpp hands to the instruction sets' translation units.
#pragma once

#include <cstddef>
#include <cstdint>

#include "half.h"
#include "isa.h"
#include "linear.h"

namespace stagebeam::kernels {

// Up to this many rows read packed weights directly; more unpack a tile first.
inline constexpr int64_t kMaxDirectRows = 16;
// Rows whose sums are held at once.
inline constexpr int64_t kMaxSumRows = 512;
// Panels side by side: 4 up to kMaxDirectRows rows, 2 beyond.
inline constexpr int64_t kMaxSums = kMaxSumRows * 2 * kPanelRows;
inline constexpr int64_t kTileSize = 2 * kSumBlock * kPanelRows;
// Rows of activations that are rounded to int8 at a time.
inline constexpr int64_t kIntegerRows = 128;

struct LinearTask {
  const std::byte* panels;  // panel `first_panel` and those behind it
  int64_t first_panel;
  int64_t panel_bytes;
  int64_t in_features;
  int64_t out_columns;  // of `out`: half of the rows of a gate-up matrix
  ConstRows x;
  int64_t num_rows;
  Rows out;
  Epilogue epilogue;
  float* sums;          // [kMaxSums], 64-byte aligned
  float* tile;          // [kTileSize], 64-byte aligned
  std::byte* integers;  // of rounded rows: rounded_bytes(), 64-byte aligned

  const std::byte* panel(int64_t index) const {
    return panels + (index - first_panel) * panel_bytes;
  }
};

// Panels first .. end - 1 of the product.
using MultiplyFunction = void (*)(const LinearTask& task, WeightFormat format, int64_t first,
                                  int64_t end);
// Bytes that `num_rows` rows rounded to int8 take at most, in whole groups of rows; in tiles they
// lie behind two panels of bytes.
inline int64_t integer_bytes(int64_t num_rows, int64_t in_features) {
  const int64_t groups = (in_features + kGroupSize - 1) / kGroupSize;
  const int64_t rows = ((num_rows < kIntegerRows ? num_rows : kIntegerRows) + 7) / 8 * 8;
  return rows * (groups + 1) * (2 * kGroupSize + 3 * 4) +
         (groups + 1) * 2 * kGroupSize * kPanelRows;
}
// The same of the kernel that weights of `format` meet.
inline int64_t rounded_bytes(WeightFormat format, int64_t num_rows, int64_t in_features) {
  if (format != WeightFormat::kBf16) return integer_bytes(num_rows, in_features);
  const int64_t rows = num_rows < kMaxSumRows ? num_rows : kMaxSumRows;
  return (rows <= 16 ? rows : (rows + 15) / 16 * 16) * ((in_features + 31) / 32) * 64;  // tiles
}

void multiply_scalar(const LinearTask& task, WeightFormat format, int64_t first, int64_t end);
void multiply_neon(const LinearTask& task, WeightFormat format, int64_t first, int64_t end);
void multiply_avx2(const LinearTask& task, WeightFormat format, int64_t first, int64_t end);
void multiply_avx512(const LinearTask& task, WeightFormat format, int64_t first, int64_t end);
// The same for int8 and int4 weights with activations rounded to int8.
void multiply_rounded_scalar(const LinearTask& task, WeightFormat format, int64_t first,
                             int64_t end);
void multiply_rounded_neon(const LinearTask& task, WeightFormat format, int64_t first, int64_t end);
void multiply_rounded_avx2(const LinearTask& task, WeightFormat format, int64_t first, int64_t end);
void multiply_rounded_vnni(const LinearTask& task, WeightFormat format, int64_t first, int64_t end);
void multiply_rounded_gfni(const LinearTask& task, WeightFormat format, int64_t first, int64_t end);
// The faster one of both that this machine runs: it has VNNI.
inline void multiply_rounded_avx512(const LinearTask& task, WeightFormat format, int64_t first,
                                    int64_t end) {
  static const MultiplyFunction run = has_gfni() ? multiply_rounded_gfni : multiply_rounded_vnni;
  run(task, format, first, end);
}
// The same for bf16 weights with activations rounded to bf16.
void multiply_rounded_bf16(const LinearTask& task, WeightFormat format, int64_t first, int64_t end);
void multiply_rounded_amx_bf16(const LinearTask& task, WeightFormat format, int64_t first,
                               int64_t end);
// The bits of multiply_rounded_avx512, which takes few rows itself.
void multiply_rounded_amx_integers(const LinearTask& task, WeightFormat format, int64_t first,
                                   int64_t end);

}  // namespace stagebeam::kernels
