// Products of bf16 weights with AMX: activations are rounded to bf16, a tile of 16 lines of a panel
// (32 weights of each of 16 rows) meets up to 16 rows of them at once.
//
// A sum is one chain of tiles over K whatever the number of rows. What is not a multiple of 32
// along K is a tile with zeros behind it.
#if defined(__x86_64__)
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "linear_tables.h"
// The instruction set begins here, for all that follows.
#include "amx.h"
#include "linear_kernels.h"

namespace stagebeam {

// A name of its own, so that no template is shared with code for machines without AMX.
struct SimdAmxBf16 : SimdAvx512 {};

namespace kernels {
namespace {

using S = SimdAmxBf16;
constexpr int kTileK = 32;
constexpr int kTileLines = amx::kTileBytes / kLineBytes;
constexpr int kSums = 0, kX = 4, kWeights = 6;  // the first tile of each kind

// A product's shape in tiles: `whole` of them along K and one more of `rest` lines.
struct Tiling {
  int64_t whole;
  int rest;
  int tile_rows;  // of activations
  int64_t num_tiles() const { return whole + (rest > 0); }
  int64_t x_bytes() const { return tile_rows * amx::kRowBytes; }
};

// Rounds a row to tiles `tile_bytes` apart; the last one's numbers after `count` are zeros.
void round_row(const float* x, int64_t count, std::byte* out, int64_t tile_bytes) {
  auto round = [](const float* at) {
    return (__m512i)_mm512_cvtne2ps_pbh(S::load(at + 16), S::load(at));
  };
  int64_t k = 0;
  for (; k + kTileK <= count; k += kTileK, out += tile_bytes) _mm512_store_si512(out, round(x + k));
  if (k == count) return;
  float rest[kTileK] = {};
  std::memcpy(rest, x + k, sizeof(float) * static_cast<size_t>(count - k));
  _mm512_store_si512(out, round(rest));
}

// A panel's last lines in a whole tile.
struct alignas(64) LastTile {
  std::byte bytes[amx::kTileBytes] = {};
  void copy(const std::byte* panel, const Tiling& tiling) {
    std::memcpy(bytes, panel + tiling.whole * amx::kTileBytes,
                static_cast<size_t>(tiling.rest) * kLineBytes);
  }
};

// Lines that are asked for while others are used, `lines` a tile.
struct Ahead {
  const std::byte* at;
  int64_t lines;
};

// One tile of K: R tiles of activations `x_stride` apart times P tiles of weights.
template <int R, int P>
STAGEBEAM_INLINE inline void add_tiles(const std::byte* x, int64_t x_stride,
                                       const std::byte* const (&weights)[P]) {
  using amx::add_bf16, amx::load;
  load<kX>(x, amx::kRowBytes);
  if constexpr (R == 2) load<kX + 1>(x + x_stride, amx::kRowBytes);
  load<kWeights>(weights[0], kLineBytes);
  add_bf16<kSums, kX, kWeights>();
  if constexpr (R == 2) add_bf16<kSums + 2, kX + 1, kWeights>();
  if constexpr (P == 2) {
    load<kWeights + 1>(weights[1], kLineBytes);
    add_bf16<kSums + 1, kX, kWeights + 1>();
    if constexpr (R == 2) add_bf16<kSums + 3, kX + 1, kWeights + 1>();
  }
}

// sums [R tiles of rows, P panels] over all of K; `last` holds the panels' last tiles.
template <int R, int P>
void multiply_tiles(const std::byte* panels, int64_t panel_bytes, const LastTile* last,
                    const Tiling& tiling, const std::byte* x, Ahead ahead, float* sums,
                    int64_t sum_stride) {
  const int64_t x_bytes = tiling.x_bytes(), x_stride = tiling.num_tiles() * x_bytes;
  amx::zero<kSums>();
  if constexpr (P == 2) amx::zero<kSums + 1>();
  if constexpr (R == 2) amx::zero<kSums + 2>();
  if constexpr (R == 2 && P == 2) amx::zero<kSums + 3>();
  for (int64_t k = 0; k < tiling.num_tiles(); ++k, x += x_bytes) {
    const std::byte* weights[P];
    STAGEBEAM_UNROLL for (int p = 0; p < P; ++p) {
      weights[p] =
          k == tiling.whole ? last[p].bytes : panels + p * panel_bytes + k * amx::kTileBytes;
    }
    if constexpr (R * P == 1) {
      ask_for_next_window<kTileLines>(panels + k * amx::kTileBytes);
    }
    for (int64_t i = 0; i < ahead.lines; ++i, ahead.at += kLineBytes) {
      _mm_prefetch(ahead.at, _MM_HINT_T1);
    }
    add_tiles<R, P>(x, x_stride, weights);
  }
  const int64_t row_bytes = sum_stride * int64_t{sizeof(float)};
  amx::store<kSums>(sums, row_bytes);
  if constexpr (P == 2) amx::store<kSums + 1>(sums + kPanelRows, row_bytes);
  if constexpr (R == 2) amx::store<kSums + 2>(sums + amx::kRows * sum_stride, row_bytes);
  if constexpr (R == 2 && P == 2) {
    amx::store<kSums + 3>(sums + amx::kRows * sum_stride + kPanelRows, row_bytes);
  }
}

// Up to 16 rows are bound by the reading of weights: one panel after the other is one stream.
void multiply_few(const LinearTask& task, const Tiling& tiling, int64_t first, int64_t end) {
  const int64_t unit = task.epilogue.kind == Epilogue::Kind::kSiluMul ? 2 : 1;
  const int64_t sum_stride = unit * kPanelRows;
  LastTile last;
  for (int64_t panel = first; panel < end; panel += unit) {
    ask_for_out(task, 0, task.num_rows, panel);
    for (int64_t p = 0; p < unit; ++p) {
      if (tiling.rest > 0) last.copy(task.panel(panel + p), tiling);
      const std::byte* weights = task.panel(panel + p);
      multiply_tiles<1, 1>(weights, task.panel_bytes, &last, tiling, task.integers, {weights, 0},
                           task.sums + p * kPanelRows, sum_stride);
    }
    finish_panels<S>(task, 0, task.num_rows, panel, unit, sum_stride);
  }
}

// Two panels, which stay in the near caches, meet two tiles of rows at a time; meanwhile the next
// two are asked for.
void multiply_many(const LinearTask& task, const Tiling& tiling, int64_t row, int64_t rows,
                   int64_t first, int64_t end) {
  constexpr int64_t kSumStride = 2 * kPanelRows;
  constexpr decltype(&multiply_tiles<1, 1>) kFunctions[2][2] = {
      {&multiply_tiles<1, 1>, &multiply_tiles<1, 2>},
      {&multiply_tiles<2, 1>, &multiply_tiles<2, 2>}};
  const int64_t x_stride = tiling.num_tiles() * tiling.x_bytes();
  LastTile last[2];
  for (int64_t panel = first; panel < end; panel += 2) {
    const int64_t panels = end - panel < 2 ? 1 : 2;
    const int64_t pieces = (rows + 2 * amx::kRows - 1) / (2 * amx::kRows);
    Ahead ahead{task.panel(panel + panels), (2 * kTileLines + pieces - 1) / pieces};
    for (int64_t p = 0; p < panels && tiling.rest > 0; ++p) {
      last[p].copy(task.panel(panel + p), tiling);
    }
    for (int64_t r = 0; r < rows; r += 2 * amx::kRows) {
      const int64_t left = rows - r, some = left < 2 * amx::kRows ? left : 2 * amx::kRows;
      kFunctions[some > amx::kRows][panels - 1](task.panel(panel), task.panel_bytes, last, tiling,
                                                task.integers + r / amx::kRows * x_stride, ahead,
                                                task.sums, kSumStride);
      ahead.at += ahead.lines * tiling.num_tiles() * kLineBytes;
      finish_panels<S>(task, row + r, some, panel, panels, kSumStride);
    }
  }
}

}  // namespace

void multiply_rounded_amx_bf16(const LinearTask& task, WeightFormat, int64_t first, int64_t end) {
  const int64_t pairs = (task.in_features + 1) / 2;
  const bool is_few = task.num_rows <= amx::kRows;
  const Tiling tiling{pairs / 16, static_cast<int>(pairs % 16),
                      is_few ? static_cast<int>(task.num_rows) : amx::kRows};
  amx::Config config;
  for (int i = 0; i < 4; ++i) config.set(kSums + i, tiling.tile_rows, amx::kRowBytes);
  for (int i = 0; i < 2; ++i) config.set(kX + i, tiling.tile_rows, amx::kRowBytes);
  for (int i = 0; i < 2; ++i) config.set(kWeights + i, 16, kLineBytes);
  const amx::Tiles tiles(config);
  for (int64_t row = 0; row < task.num_rows; row += kMaxSumRows) {
    const int64_t rows = task.num_rows - row < kMaxSumRows ? task.num_rows - row : kMaxSumRows;
    for (int64_t r = 0; r < rows; ++r) {
      std::byte* block = task.integers + r / amx::kRows * tiling.num_tiles() * tiling.x_bytes();
      round_row(task.x.data + (row + r) * task.x.stride, task.in_features,
                block + r % amx::kRows * amx::kRowBytes, tiling.x_bytes());
    }
    if (is_few) {
      multiply_few(task, tiling, first, end);
    } else {
      multiply_many(task, tiling, row, rows, first, end);
    }
  }
}

}  // namespace kernels
}  // namespace stagebeam
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
