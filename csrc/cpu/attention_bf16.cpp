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
    for (int i = 0; i < kLinesAPair; ++i, lines += kLineBytes) {
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

// Line p of the tile: elements 2 * p and 2 * p + 1, from `first` on, of each token's key.
inline void fill_keys(const Bfloat16* const* rows, int64_t count, int64_t first, int64_t head_dim,
                      PairTile& tile, Prefetcher& ahead) {
  for (int64_t token = 0; token < count; token += kLanes) {
    for (int64_t p = 0; p < kPairs && first + 2 * p < head_dim; p += kLanes) {
      __m512i words[16];
      ahead.ask(4);
      STAGEBEAM_UNROLL for (int i = 0; i < 16; ++i) {
        const Bfloat16* row = rows[std::min(token + i, count - 1)];
        words[i] = load_halves(row + first + 2 * p, head_dim - first - 2 * p);
      }
      transpose(words);
      STAGEBEAM_UNROLL for (int i = 0; i < 16; ++i) {
        _mm512_store_si512(&tile.lines[p + i][token], words[i]);
      }
    }
  }
}

// Scores of the first `seen` of `count` tokens to pairs of weights, zeros after them; returns
// (largest, sum).
inline void to_weights(const float* scores, int64_t seen, int64_t count, uint32_t* weights,
                       float* largest, float* sum) {
  const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  auto load = [&](int64_t v) __attribute__((always_inline)) {
    const int64_t left = std::clamp<int64_t>(seen - v * kLanes, 0, kLanes);
    const auto mask = static_cast<__mmask16>((uint32_t{1} << left) - 1);
    return _mm512_mask_loadu_ps(lowest, mask, scores + v * kLanes);
  };
  __m512 tops[kVectors] = {lowest, lowest, lowest, lowest}, sums[kVectors] = {};
  for (int64_t first = 0; first * kLanes < count; first += kVectors) {
    STAGEBEAM_UNROLL for (int v = 0; v < kVectors; ++v) {
      tops[v] = _mm512_max_ps(tops[v], load(first + v));
    }
  }
  *largest = _mm512_reduce_max_ps(
      _mm512_max_ps(_mm512_max_ps(tops[0], tops[1]), _mm512_max_ps(tops[2], tops[3])));
  const __m512 base = _mm512_set1_ps(-kLog2E * *largest);
  for (int64_t first = 0; first * kLanes < count; first += kVectors) {
    __m512 x[kVectors];
    STAGEBEAM_UNROLL for (int v = 0; v < kVectors; ++v) {
      x[v] = power_of_two(_mm512_fmadd_ps(load(first + v), _mm512_set1_ps(kLog2E), base));
      sums[v] = _mm512_add_ps(sums[v], x[v]);
    }
    STAGEBEAM_UNROLL for (int v = 0; v < kVectors; v += 2) {
      _mm512_storeu_si512(weights + (first + v) * kLanes / 2,
                          (__m512i)_mm512_cvtne2ps_pbh(x[v + 1], x[v]));
    }
  }
  *sum = _mm512_reduce_add_ps(
      _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

// targets[q][0 .. width - 1] = row q of pairs times a tile's lines, added to what is there unless
// is_first.
template <int kStride>
inline void multiply(const uint32_t (*pairs)[kStride], int64_t first_pair, int64_t num_rows,
                     const PairTile& tile, int64_t num_pairs, int64_t width, bool is_first,
                     float* const* targets, Prefetcher& ahead) {
  const uint32_t* rows[kRowsAtOnce];
  const int64_t vectors = (width + kLanes - 1) / kLanes;
  const int64_t pieces = (num_rows + kRowsAtOnce - 1) / kRowsAtOnce;
  for (int64_t piece = 0, row = 0; piece < pieces; ++piece) {
    const int64_t count = (num_rows - row) / (pieces - piece);
    for (int64_t r = 0; r < count; ++r) rows[r] = pairs[row + r] + first_pair;
    const std::byte* lines = ahead.take_lines(num_pairs * kLinesAPair);
    if (lines == nullptr) lines = reinterpret_cast<const std::byte*>(&tile);  // near already
    kPairsTable.run[count - 1][vectors - 1](rows, tile, num_pairs, is_first, targets + row, lines);
    row += count;
  }
}

// All queries of which attend to the same `count` rows, a tile of them at a time.
inline void attend_rows(const KvLayout& layout, const Rows& rows, int64_t begin, int64_t count,
                        const Query* queries, int64_t num_queries, Prefetcher& ahead) {
  PairTile tile;
  alignas(64) float scores[kMaxTileQueries][kSplitTokens];
  alignas(64) float sums[kMaxTileQueries][kWidth];
  alignas(64) uint32_t pairs[kMaxTileQueries][kPairs];
  alignas(64) uint32_t weights[kMaxTileQueries][kSplitPairs];
  float* targets[kMaxTileQueries];
  const int64_t head_dim = layout.head_dim;
  for (int64_t first = 0; first < head_dim; first += kWidth) {
    const int64_t width = std::min<int64_t>(kWidth, head_dim - first);
    for (int64_t q = 0; q < num_queries; ++q) {
      const float* query = queries[q].query + first;
      for (int64_t d = 0; d < width; d += kBlock) {
        _mm512_store_si512(&pairs[q][d / 2], to_pairs(query + d, width - d));
      }
    }
    for (int64_t token = 0; token < count; token += kTileTokens) {
      const int64_t tokens = std::min<int64_t>(kTileTokens, count - token);
      fill_keys(rows.keys + token, tokens, first, head_dim, tile, ahead);
      for (int64_t q = 0; q < num_queries; ++q) targets[q] = scores[q] + token;
      multiply(pairs, 0, num_queries, tile, (width + 1) / 2, tokens, first == 0, targets, ahead);
    }
  }
  for (int64_t q = 0; q < num_queries; ++q) {
    float* tail = queries[q].state + padded(head_dim);
    const int64_t seen = std::clamp<int64_t>(queries[q].limit - begin, 0, count);
    if (seen > 0) {
      to_weights(scores[q], seen, count, weights[q], tail, tail + 1);
      ahead.ask((6 * count + kTileTokens - 1) / kTileTokens);
    } else {
      std::fill_n(weights[q], kSplitPairs, 0);
      tail[0] = -std::numeric_limits<float>::infinity();
      tail[1] = 0;
    }
  }
  for (int64_t q = 0; q < num_queries; ++q) targets[q] = sums[q];
  for (int64_t first = 0; first < head_dim; first += kWidth) {
    const int64_t width = std::min<int64_t>(kWidth, head_dim - first);
    const int64_t whole = (width + kBlock - 1) / kBlock * kBlock;
    for (int64_t token = 0; token < count; token += kTileTokens) {
      const int64_t tokens = std::min<int64_t>(kTileTokens, count - token);
      fill_values(rows.values + token, tokens, first, width, tile.lines, [&] { ahead.ask(1); });
      multiply(weights, token / 2, num_queries, tile, (tokens + 1) / 2, whole, token == 0, targets,
               ahead);
    }
    for (int64_t q = 0; q < num_queries; ++q) {
      put_values(sums[q], std::min<int64_t>(kWidth, padded(head_dim) - first),
                 queries[q].state + first);
    }
  }
}

void attend_split(const Tile& tile, const TileSource& tiles) {
  Rows rows;
  Prefetcher ahead(*tile.layout, tiles.after(), tiles.lines_ahead());
  const int64_t shared_end = std::min(tile.end, tile.shared_end);
  if (tile.begin < shared_end) {
    rows.find(*tile.layout, *tile.shared, tile.begin, shared_end, tile.begin);
  }
  if (tile.end <= tile.shared_end) {
    attend_rows(*tile.layout, rows, tile.begin, tile.end - tile.begin, tile.queries,
                tile.num_queries, ahead);
    return;
  }
  // Runs of queries with one tail, behind the shared tokens.
  const int64_t tail_begin = std::max(tile.begin, tile.shared_end);
  for (int64_t q = 0, next = 0; q < tile.num_queries; q = next) {
    const Query& query = tile.queries[q];
    next = tile.run_end(q);
    const int64_t end = std::min(tile.end, query.limit);
    if (query.tail != nullptr && tail_begin < end) {
      rows.find(*tile.layout, *query.tail, tail_begin, end, tile.begin);
    }
    if (tile.begin < end) {
      attend_rows(*tile.layout, rows, tile.begin, end - tile.begin, &query, next - q, ahead);
      continue;
    }
    for (int64_t i = q; i < next; ++i) clear_state(tile.queries[i].state, tile.layout->head_dim);
  }
}

}  // namespace

void attend_bf16_pairs(TileSource& tiles) {
  each_tile(tiles, [&](const Tile& tile) { attend_split(tile, tiles); });
}

}  // namespace stagebeam::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
