// Attention over bfloat16 caches with AMX. Scores are keys, straight from the cache, times queries,
// which are transposed once a run of splits: a column is a query, so that softmax needs no sums
// across a vector. Weighted sums are weights times interleaved values. A sum is made of 16 pairs at
// a time, whatever the queries beside it.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>

// The instruction set begins here, for all that follows.
#include "amx.h"

#define STAGEBEAM_UNROLL _Pragma("GCC unroll 16")

namespace stagebeam::cpu {
namespace {

#include "attention_pairs.h"

constexpr int kPairLines = amx::kRows;  // pairs of one product

// After half a microsecond without products the tiles' unit sleeps, and takes a third of one to
// wake. This one's sum is dropped.
inline void keep_awake() {
  amx::add_bf16<3, 4, 6>();
}

#include "attention_columns.h"

constexpr int kTokens = amx::kRows;  // of a product of keys
constexpr int kColumnGroups = kMaxTileQueries / kLanes;
constexpr int64_t kMostChunks = 8;  // of 16 pairs of a head's elements
constexpr int64_t kLineBytes = sizeof(PairTile{}.lines[0]);
constexpr int64_t kPairsBytes = kPairs * sizeof(uint32_t);
constexpr int64_t kSumsBytes = kWidth * sizeof(float);

class TileProduct {
 public:
  explicit TileProduct(const Tile& tile) : tiles_(shapes(tile.num_queries)) {
    take(tile.queries, tile.num_queries, tile.layout->head_dim);
  }

  void attend(const KvLayout& layout, const Rows& rows, int64_t begin, int64_t count,
              const Query* queries, int64_t num_queries, Prefetcher& ahead) {
    if (queries != queries_ || num_queries != num_queries_) {
      if (num_queries % kLanes != num_queries_ % kLanes) tiles_.configure(shapes(num_queries));
      take(queries, num_queries, layout.head_dim);
    }
    each_pass([&]<int kFull, bool kRest>(int64_t group) {
      score<kFull, kRest>(layout, rows, count, group, ahead);
    });
    for (int64_t q = 0; q < num_queries; q += kLanes) {
      const int64_t columns = std::min<int64_t>(num_queries - q, kLanes);
      const auto weigh = columns > 8 ? to_weights<16> : columns > 4 ? to_weights<8> : to_weights<4>;
      weigh(scores_ + q * kSplitTokens, begin, count, queries + q, columns, layout.head_dim,
            weights_ + q, ahead);
    }
    const int64_t chunks = (count + 2 * kPairLines - 1) / (2 * kPairLines);
    for (int64_t first = 0; first < layout.head_dim; first += kWidth) {
      fill_values<keep_awake>(rows.values, count, first, layout.head_dim, values_, ahead);
      const int64_t blocks =
          std::min<int64_t>(kWidth, layout.head_dim - first + kBlock - 1) / kBlock;
      for (int64_t p = (count + 1) / 2; p < chunks * kPairLines; ++p) {
        for (int64_t v = 0; v < blocks * 2; ++v) {
          _mm512_store_si512(&values_.lines[p][v * kLanes], _mm512_setzero_si512());
        }
      }
      each_pass([&]<int kFull, bool kRest>(int64_t group) {
        sum<kFull, kRest>(chunks, 2 * blocks, group, ahead);
      });
      const int64_t width = std::min<int64_t>(kWidth, padded(layout.head_dim) - first);
      for (int64_t q = 0; q < num_queries; ++q) {
        put_values(scores_ + q * kWidth, width, queries[q].state + first);
      }
    }
    ahead.ask(kSplitTokens);
  }

 private:
  // Columns of the last queries.
  static constexpr int columns_of(int64_t rest) {
    return rest == 0 || rest > 8 ? 16 : rest > 4 ? 8 : 4;
  }

  // Tiles 0 and 1: sums of sixteen queries; 2 and 3: of the rest, as columns and as rows; 4: the
  // rest's weights, 5: the rest; 6 and 7 what is multiplied.
  static constexpr amx::Config shapes_of(int rest) {
    amx::Config config;
    for (int tile = 0; tile < 8; ++tile) config.set(tile, amx::kRows, amx::kRowBytes);
    for (int tile : {2, 5}) config.set(tile, amx::kRows, columns_of(rest) * 4);
    if (rest > 0) {
      for (int tile : {3, 4}) config.set(tile, rest, amx::kRowBytes);
    }
    return config;
  }
  // Made beforehand: the instruction would wait for bytes that were only just written.
  static const amx::Config& shapes(int64_t num_queries) {
    static constexpr auto kShapes = [] {
      std::array<amx::Config, kLanes> all{};
      for (int rest = 0; rest < kLanes; ++rest) all[rest] = shapes_of(rest);
      return all;
    }();
    return kShapes[num_queries % kLanes];
  }

  // Sixteen queries are a group, which two may be at once, and the rest go with the last of these.
  template <typename Work>
  void each_pass(Work&& work) const {
    const int64_t full = num_queries_ / kLanes;
    for (int64_t group = 0; group == 0 || group < full; group += 2) {
      const bool has_rest = group + 2 >= full && num_queries_ % kLanes != 0;
      switch (std::min<int64_t>(full - group, 2) * 2 + (has_rest ? 1 : 0)) {
        case 1:
          work.template operator()<0, true>(group);
          break;
        case 2:
          work.template operator()<1, false>(group);
          break;
        case 3:
          work.template operator()<1, true>(group);
          break;
        case 4:
          work.template operator()<2, false>(group);
          break;
        default:
          work.template operator()<2, true>(group);
      }
    }
  }

  // Queries' pairs with a query a column.
  void take(const Query* queries, int64_t num_queries, int64_t head_dim) {
    queries_ = queries;
    num_queries_ = num_queries;
    for (int64_t first = 0, chunk = 0; first < head_dim; first += kBlock, ++chunk) {
      for (int64_t q = 0; q < num_queries; q += kLanes) {
        const int64_t count = std::min<int64_t>(num_queries - q, kLanes);
        pack_columns(queries + q, count, columns_of(count % kLanes), first, head_dim - first,
                     packed_[chunk][q / kLanes]);
      }
    }
  }

  // Scores of queries [groups of 16][tokens][columns], of groups `group` .. group + kFull - 1 and
  // of the rest behind them.
  template <int kFull, bool kRest>
  void score(const KvLayout& layout, const Rows& rows, int64_t count, int64_t group,
             Prefetcher& ahead) {
    const int64_t stride = layout.token_stride * Prefetcher::kElement;
    const int64_t rest = columns_of(num_queries_ % kLanes), rest_group = num_queries_ / kLanes;
    const bool is_whole = layout.head_dim % kBlock == 0;
    for (int64_t token = 0; token < count; token += kTokens) {
      const bool is_direct = is_whole && rows.is_run[token / kTokens];
      if constexpr (kFull > 0) amx::zero<0>();
      if constexpr (kFull > 1) amx::zero<1>();
      if constexpr (kRest) amx::zero<2>();
      for (int64_t first = 0, chunk = 0; first < layout.head_dim; first += kBlock, ++chunk) {
        if (is_direct) {
          amx::load<6>(rows.keys[token] + first, stride);
        } else {
          for (int64_t t = 0; t < kTokens; ++t) {
            const Bfloat16* key = rows.keys[std::min(token + t, count - 1)];
            _mm512_store_si512(keys_[t], load_halves(key + first, layout.head_dim - first));
          }
          amx::load<6>(keys_, amx::kRowBytes);
        }
        ahead.ask(2);
        if constexpr (kFull > 0) {
          amx::load<7>(packed_[chunk][group], amx::kRowBytes);
          amx::add_bf16<0, 6, 7>();
        }
        ahead.ask(2);
        if constexpr (kFull > 1) {
          amx::load<7>(packed_[chunk][group + 1], amx::kRowBytes);
          amx::add_bf16<1, 6, 7>();
        }
        if constexpr (kRest) {
          amx::load<5>(packed_[chunk][rest_group], rest * 4);
          amx::add_bf16<2, 6, 5>();
        }
      }
      float* scores = scores_ + (group * kSplitTokens + token) * kLanes;
      if constexpr (kFull > 0) amx::store<0>(scores, amx::kRowBytes);
      if constexpr (kFull > 1) amx::store<1>(scores + kSplitTokens * kLanes, amx::kRowBytes);
      if constexpr (kRest) {
        amx::store<2>(scores_ + rest_group * kSplitTokens * kLanes + token * rest, rest * 4);
      }
    }
  }

  // Weighted sums [queries][64] of the values' first 16 * columns elements.
  template <int kFull, bool kRest>
  void sum(int64_t chunks, int64_t columns, int64_t group, Prefetcher& ahead) {
    const int64_t rest_row = num_queries_ / kLanes * kLanes;
    float* sums = scores_ + group * kLanes * kWidth;
    const std::byte* lines = ahead.take_lines(columns * chunks * kLinesAProduct);
    if (lines == nullptr) lines = reinterpret_cast<const std::byte*>(&values_);  // near already
    for (int64_t v = 0; v < columns; ++v) {
      if constexpr (kFull > 0) amx::zero<0>();
      if constexpr (kFull > 1) amx::zero<1>();
      if constexpr (kRest) amx::zero<3>();
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t p = chunk * kPairLines;
        amx::load<6>(&values_.lines[p][v * kLanes], kLineBytes);
        if constexpr (kFull > 0) {
          amx::load<7>(&weights_[group * kLanes][p], kPairsBytes);
          amx::add_bf16<0, 7, 6>();
        }
        for (int64_t i = 0; i < kLinesAProduct; ++i, lines += Prefetcher::kLine) {
          _mm_prefetch(lines, _MM_HINT_T1);
        }
        if constexpr (kFull > 1) {
          amx::load<7>(&weights_[(group + 1) * kLanes][p], kPairsBytes);
          amx::add_bf16<1, 7, 6>();
        }
        if constexpr (kRest) {
          amx::load<4>(&weights_[rest_row][p], kPairsBytes);
          amx::add_bf16<3, 4, 6>();
        }
      }
      if constexpr (kFull > 0) amx::store<0>(sums + v * kLanes, kSumsBytes);
      if constexpr (kFull > 1) amx::store<1>(sums + kLanes * kWidth + v * kLanes, kSumsBytes);
      if constexpr (kRest) amx::store<3>(scores_ + rest_row * kWidth + v * kLanes, kSumsBytes);
    }
  }

  static constexpr int64_t kLinesAProduct = 4;

  amx::Tiles tiles_;
  const Query* queries_;
  int64_t num_queries_;
  PairTile values_;
  alignas(64) uint32_t packed_[kMostChunks][kColumnGroups][kPairLines * kLanes];
  alignas(64) uint32_t weights_[kMaxTileQueries][kPairs];
  alignas(64) float scores_[kMaxTileQueries * kSplitTokens];  // then sums [queries][64]
  alignas(64) uint32_t keys_[kTokens][kLanes];                // of places far from each other
};

}  // namespace

void attend_bf16_tiles(const Tile& tile) {
  if (tile.layout->head_dim > kMostChunks * kBlock) return attend_bf16_pairs(tile);
  attend_tile<TileProduct>(tile);
}

}  // namespace stagebeam::cpu
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
