// Products of packed weights with rows of activations: out = x W^T, and what follows it fused in.
//
// Sums are float32, one chain of fused multiply-adds for each block of kSumBlock terms along K, the
// blocks added in order. Invariant: a row's result depends on that row and the weights alone, bit
// for bit: not on the other rows, their number, the number of parts, or the instruction set
// (SimdScalar, which has no fused multiply-add, apart).
#pragma once

#include <cstdint>

#include "packed_matrix.h"

namespace stagebeam {

// Rows of numbers; `stride` elements from one row to the next.
struct ConstRows {
  const float* data;
  int64_t stride;
};
struct Rows {
  float* data;
  int64_t stride;
};

struct Epilogue {
  enum class Kind {
    kNone,
    kAddResidual,  // out = residual + scale * product; residual may be `out` itself
    kSiluMul,      // out = silu(gate) * up, of a kGateUp matrix: out_features / 2 columns
  };
  Kind kind = Kind::kNone;
  ConstRows residual = {nullptr, 0};
  float scale = 1.0f;

  static Epilogue none() { return {}; }
  static Epilogue add_residual(ConstRows residual, float scale = 1.0f) {
    return {Kind::kAddResidual, residual, scale};
  }
  static Epilogue silu_mul() { return {Kind::kSiluMul, {nullptr, 0}, 1.0f}; }
};

// The part of the product that part `part` of `parts` computes: all rows, a run of columns. Call it
// in every part of a region; the result is whole after the next barrier. x [num_rows, in_features],
// out [num_rows, out_features], which may overlap neither x nor each other. Any alignment, any
// number of rows; each weight is read from memory once for up to 16 rows. Never throws: wrong
// arguments are asserts. May keep up to 128 KiB of scratch for each calling thread.
void linear_part(const PackedMatrix& weights, ConstRows x, int64_t num_rows, Rows out, int part,
                 int parts, const Epilogue& epilogue = {}) noexcept;

}  // namespace stagebeam
