// Products of bf16 weights with AVX-512's bf16 dot products: activations are rounded to bf16, each
// sum is one chain over pairs of K. A packed line is what an instruction takes: two weights of each
// of 16 rows.
#if defined(__x86_64__)
#include <cstddef>
#include <cstdint>
#include <utility>

#include "linear_tables.h"
// The instruction set begins here, for all that follows.
#define STAGEBEAM_FEATURES ",avx512bf16"
#include "simd_avx512.h"
#if !defined(__clang__)
#pragma GCC target("avx512bf16")
#endif

#include "linear_kernels.h"

namespace stagebeam {

// A name of its own, so that no template is shared with code for machines without bf16 products.
struct SimdBf16 : SimdAvx512 {};

namespace kernels {
namespace {

using S = SimdBf16;
constexpr int kBlockPairs = kSumBlock / 2;  // of K that stay in the nearest cache for many rows
// Up to this many rows are bound by the reading of weights: one panel after the other is one
// stream.
constexpr int64_t kMostStreamed = 8;

// out [R, P panels] = x [R, pairs] times P panels `stride` bytes apart; added to what is there
// unless is_first.
template <int R, int P>
void multiply_pairs(const std::byte* panels, int64_t stride, const uint32_t* x, int64_t x_stride,
                    int64_t pairs, bool is_first, float* out, int64_t out_stride) {
  __m512 sums[R][P];
  STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
    STAGEBEAM_UNROLL for (int p = 0; p < P; ++p) {
      sums[r][p] = is_first ? S::zero() : S::load(out + r * out_stride + p * kPanelRows);
    }
  }
  for (int64_t k = 0; k < pairs; ++k) {
    __m512bh line[P];
    STAGEBEAM_UNROLL for (int p = 0; p < P; ++p) {
      line[p] = (__m512bh)S::load_words(panels + p * stride + k * kLineBytes);
    }
    if constexpr (R <= kMostStreamed && P == 1) {
      if (k % kPagesAtOnce == 0) ask_for_next_window<kPagesAtOnce>(panels + k * kLineBytes);
    }
    STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
      const auto pair = (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(x[r * x_stride + k]));
      STAGEBEAM_UNROLL for (int p = 0; p < P; ++p) {
        sums[r][p] = _mm512_dpbf16_ps(sums[r][p], line[p], pair);
      }
    }
  }
  STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
    STAGEBEAM_UNROLL for (int p = 0; p < P; ++p) {
      S::store(out + r * out_stride + p * kPanelRows, sums[r][p]);
    }
  }
}

using PairsFunction = void (*)(const std::byte*, int64_t, const uint32_t*, int64_t, int64_t, bool,
                               float*, int64_t);
template <int R, int P>
constexpr PairsFunction pairs_function() {
  if constexpr (P <= panels_at_once<S>(R)) return &multiply_pairs<R, P>;
  return nullptr;
}
struct PairsTable {
  PairsFunction run[kMaxRows<S>][3];  // [rows - 1][log2 of panels]

  template <int... R>
  static constexpr PairsTable make(std::integer_sequence<int, R...>) {
    return {
        {{pairs_function<R + 1, 1>(), pairs_function<R + 1, 2>(), pairs_function<R + 1, 4>()}...}};
  }
};
constexpr PairsTable kPairsTable = PairsTable::make(std::make_integer_sequence<int, kMaxRows<S>>{});

void round_row(const float* x, int64_t count, uint32_t* out) {
  auto round = [](__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); };
  int64_t k = 0;
  for (; k + 32 <= count; k += 32) {
    _mm512_storeu_si512(out + k / 2, round(S::load(x + k), S::load(x + k + 16)));
  }
  if (k == count) return;
  float rest[32] = {};
  for (int64_t i = k; i < count; ++i) rest[i - k] = x[i];
  const auto mask = static_cast<__mmask16>((uint32_t{1} << (count - k + 1) / 2) - 1);
  _mm512_mask_storeu_epi32(out + k / 2, mask, round(S::load(rest), S::load(rest + 16)));
}

// The sums of `rows` rounded rows times `panels` panels, a block of K after the other.
void multiply_panels(const LinearTask& task, const uint32_t* x, int64_t x_stride, int64_t rows,
                     int64_t panel, int64_t panels, int64_t sum_stride) {
  const int64_t pairs = (task.in_features + 1) / 2;
  const int64_t block = rows > kMaxRows<S> ? kBlockPairs : pairs;
  const int64_t pieces = (rows + kMaxRows<S> - 1) / kMaxRows<S>;
  for (int64_t k = 0; k == 0 || k < pairs; k += block) {
    const int64_t count = pairs - k < block ? pairs - k : block;
    for (int64_t piece = 0, row = 0; piece < pieces; ++piece) {
      const int some = static_cast<int>((rows - row) / (pieces - piece));
      const int widest = rows <= kMostStreamed ? 1 : panels_at_once<S>(some);
      for (int64_t p = 0; p < panels;) {
        const int64_t left = panels - p;
        const int log = widest >= 4 && left >= 4 ? 2 : widest >= 2 && left >= 2 ? 1 : 0;
        kPairsTable.run[some - 1][log](task.panel(panel + p) + k * kLineBytes, task.panel_bytes,
                                       x + row * x_stride + k, x_stride, count, k == 0,
                                       task.sums + row * sum_stride + p * kPanelRows, sum_stride);
        p += int64_t{1} << log;
      }
      row += some;
    }
  }
}

}  // namespace

void multiply_rounded_bf16(const LinearTask& task, WeightFormat, int64_t first, int64_t end) {
  const int64_t step = task.num_rows > kMaxRows<S> ? 2 : 4;  // even: gate and up stay together
  const int64_t sum_stride = step * kPanelRows, x_stride = (task.in_features + 1) / 2;
  auto* x = reinterpret_cast<uint32_t*>(task.integers);
  for (int64_t row = 0; row < task.num_rows; row += kMaxSumRows) {
    const int64_t rows = task.num_rows - row < kMaxSumRows ? task.num_rows - row : kMaxSumRows;
    for (int64_t r = 0; r < rows; ++r) {
      round_row(task.x.data + (row + r) * task.x.stride, task.in_features, x + r * x_stride);
    }
    for (int64_t panel = first; panel < end; panel += step) {
      const int64_t panels = end - panel < step ? end - panel : step;
      for (int64_t p = 0; p < panels && rows <= kMostStreamed; ++p) {
        ask_for_out(task, row, rows, panel + p);
      }
      multiply_panels(task, x, x_stride, rows, panel, panels, sum_stride);
      finish_panels<S>(task, row, rows, panel, panels, sum_stride);
    }
  }
}

}  // namespace kernels
}  // namespace stagebeam
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
