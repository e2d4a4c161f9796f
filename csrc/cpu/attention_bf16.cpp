// Attention over bfloat16 caches with AVX-512's bf16 products, two multiply-adds a lane: a score is
// one chain over the head's pairs, a weighted sum one chain over pairs of tokens.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), \
    apply_to = function)
#define STAGEBEAM_UNROLL _Pragma("unroll")
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // g++ 12 suspects its own intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"
#define STAGEBEAM_UNROLL _Pragma("GCC unroll 16")
#endif

namespace stagebeam::cpu {
namespace {

#include "attention_pairs.h"

constexpr int kRowsAtOnce = 6;  // times kVectors sums fill the registers
constexpr int kLinesAPair = 2;

// outs[r] [V vectors] = rows[r]'s pairs times the tile's first `pairs` lines, added to what is
// there unless is_first. Meanwhile asks for kLinesAPair lines a pair from `lines` on.
template <int R, int V>
void multiply_pairs(const uint32_t* const* rows, const PairTile& tile, int64_t pairs, bool is_first,
                    float* const* outs, const std::byte* lines) {
  __m512 sums[R][V];
  STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
    STAGEBEAM_UNROLL for (int v = 0; v < V; ++v) {
      sums[r][v] = is_first ? _mm512_setzero_ps() : _mm512_loadu_ps(outs[r] + v * kLanes);
    }
  }
  const uint32_t* x[R];
  STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) x[r] = rows[r];
  for (int64_t p = 0; p < pairs; ++p) {
    for (int i = 0; i < kLinesAPair; ++i, lines += Prefetcher::kLine) {
      _mm_prefetch(lines, _MM_HINT_T1);
    }
    __m512bh line[V];
    STAGEBEAM_UNROLL for (int v = 0; v < V; ++v) {
      line[v] = (__m512bh)_mm512_load_si512(&tile.lines[p][v * kLanes]);
    }
    STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
      const auto pair = (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(x[r][p]));
      STAGEBEAM_UNROLL for (int v = 0; v < V; ++v) {
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], pair, line[v]);
      }
    }
  }
  STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
    STAGEBEAM_UNROLL for (int v = 0; v < V; ++v) _mm512_storeu_ps(outs[r] + v * kLanes, sums[r][v]);
  }
}

using PairsFunction = void (*)(const uint32_t* const*, const PairTile&, int64_t, bool,
                               float* const*, const std::byte*);
template <int... R>
constexpr auto pairs_table(std::integer_sequence<int, R...>) {
  struct Table {
    PairsFunction run[sizeof...(R)][kVectors];
  };
  return Table{{{multiply_pairs<R + 1, 1>, multiply_pairs<R + 1, 2>, multiply_pairs<R + 1, 3>,
                 multiply_pairs<R + 1, 4>}...}};
}
constexpr auto kPairsTable = pairs_table(std::make_integer_sequence<int, kRowsAtOnce>{});

class PairProduct {
 public:
  static constexpr bool kHasFreeTargets = true;

  static void keep_awake() {}

  explicit PairProduct(int64_t) {}
  void run(const uint32_t (*pairs)[kPairs], int64_t num_rows, const PairTile& tile,
           int64_t num_pairs, int64_t width, bool is_first, float* const* targets,
           Prefetcher& ahead) const {
    const uint32_t* rows[kRowsAtOnce];
    const int64_t vectors = (width + kLanes - 1) / kLanes;
    const int64_t pieces = (num_rows + kRowsAtOnce - 1) / kRowsAtOnce;
    for (int64_t piece = 0, row = 0; piece < pieces; ++piece) {
      const int64_t count = (num_rows - row) / (pieces - piece);
      for (int64_t r = 0; r < count; ++r) rows[r] = pairs[row + r];
      const std::byte* lines = ahead.take_lines(num_pairs * kLinesAPair);
      if (lines == nullptr) lines = reinterpret_cast<const std::byte*>(&tile);  // near already
      kPairsTable.run[count - 1][vectors - 1](rows, tile, num_pairs, is_first, targets + row,
                                              lines);
      row += count;
    }
  }
};

}  // namespace

void attend_bf16_pairs(const Tile& tile) {
  attend_tile<PairProduct>(tile);
}

}  // namespace stagebeam::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
