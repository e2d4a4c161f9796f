// Attention over bfloat16 caches with AMX. Scores are keys, straight from the cache, times queries,
// which are transposed once a run of splits: a column is a query, so that softmax needs no sums
// across a vector. Weighted sums are weights times interleaved values. A sum is made of 16 pairs at
// a time, whatever the queries beside it.
//
// Units of work go through a pipeline: while one's values are interleaved, the next one's scores
// are made, and while its scores become weights, the sums of the one before. So tiles and vectors
// work side by side, and nothing that was only just stored is waited for.
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
#include "attention_columns.h"

constexpr int kPairLines = amx::kRows;  // pairs of one product
constexpr int kTokens = amx::kRows;     // of a product of keys
constexpr int kColumnGroups = kMaxTileQueries / kLanes;
constexpr int64_t kMostChunks = 8;  // of 16 pairs of a head's elements
constexpr int64_t kMostWidths = kMostChunks * kBlock / kWidth;
constexpr int64_t kLineBytes = sizeof(PairTile{}.lines[0]);
constexpr int64_t kPairsBytes = kPairs * sizeof(uint32_t);
constexpr int64_t kSumsBytes = kWidth * sizeof(float);

// Queries that attend to the same tokens of one split.
struct Unit {
  const Tile* tile;
  const Query* queries;
  int64_t num_queries;
  bool is_new;           // other queries than the unit's before
  int64_t begin, count;  // tokens
  int64_t state;         // where the split's is in the queries' states
  Rows rows;

  int64_t head_dim() const { return tile->layout->head_dim; }
  // Queries in groups of sixteen, and in the rest behind them.
  int64_t full() const { return num_queries / kLanes; }
  int64_t rest() const { return num_queries % kLanes; }
};

// Tiles' units one after the other.
class Units {
 public:
  explicit Units(TileSource& tiles) : tiles_(tiles) {}

  // False where there are no more. Makes states without tokens itself.
  bool next(Unit& unit) {
    while (true) {
      if (tile_ == nullptr) {
        tile_ = tiles_.next();
        if (tile_ == nullptr) return false;
        begin_ = tile_->begin;
        first_ = 0;
        last_queries_ = nullptr;
      }
      for (; begin_ < tile_->end; begin_ += kSplitTokens, first_ = 0) {
        if (find(unit)) return true;
      }
      const Tile& tile = *tile_;
      tile_ = nullptr;
      if (last_queries_ == nullptr) tiles_.done(tile);
    }
  }

 private:
  // The next unit of the split at begin_, if there is one.
  bool find(Unit& unit) {
    const Tile& tile = *tile_;
    const KvLayout& layout = *tile.layout;
    const int64_t split_end = std::min(begin_ + kSplitTokens, tile.end);
    const int64_t shared_end = std::min(split_end, tile.shared_end);
    const int64_t state = (begin_ - tile.begin) / kSplitTokens * state_size(layout.head_dim);
    while (first_ < tile.num_queries) {
      // A run of queries with one tail, behind the shared tokens.
      const Query& query = tile.queries[first_];
      int64_t last = first_ + 1;
      int64_t end = split_end;
      if (split_end == shared_end) {
        last = tile.num_queries;
      } else {
        while (last < tile.num_queries && tile.queries[last].tail == query.tail) ++last;
        end = std::min(split_end, query.limit);
      }
      const int64_t num_queries = last - first_;
      first_ = last;
      if (end <= begin_) {
        for (int64_t q = 0; q < num_queries; ++q) {
          clear_state((&query)[q].state + state, layout.head_dim);
        }
        continue;
      }
      if (begin_ < shared_end) {
        unit.rows.find(layout, *tile.shared, begin_, shared_end, begin_);
      }
      const int64_t tail_begin = std::max(begin_, tile.shared_end);
      if (tail_begin < end && query.tail != nullptr) {
        unit.rows.find(layout, *query.tail, tail_begin, end, begin_);
      }
      unit.tile = &tile;
      unit.queries = &query;
      unit.num_queries = num_queries;
      unit.is_new = &query != last_queries_ || num_queries != last_count_;
      unit.begin = begin_;
      unit.count = end - begin_;
      unit.state = state;
      last_queries_ = &query;
      last_count_ = num_queries;
      return true;
    }
    return false;
  }

  TileSource& tiles_;
  const Tile* tile_ = nullptr;
  int64_t begin_ = 0, first_ = 0;  // the split, and the first query that is left in it
  const Query* last_queries_ = nullptr;  // of the unit before, in this tile
  int64_t last_count_ = 0;
};

// Asks for a unit's cache lines, and for what the thread reads after its attention.
class UnitPrefetcher {
 public:
  explicit UnitPrefetcher(LinesAhead* lines) : lines_(lines) {}

  void turn_to(const Unit* unit) {
    unit_ = unit;
    next_ = 0;
    count_ = unit == nullptr ? 0 : unit->count;
    bytes_ = unit == nullptr ? 0 : unit->head_dim() * int64_t{sizeof(Bfloat16)};
  }
  // The keys and values of the next `count` tokens.
  void ask(int64_t count) {
    for (; count > 0 && next_ < count_; --count, ++next_) {
      const auto* keys = reinterpret_cast<const std::byte*>(unit_->rows.keys[next_]);
      const auto* values = reinterpret_cast<const std::byte*>(unit_->rows.values[next_]);
      for (int64_t at = 0; at < bytes_; at += kLine) {
        _mm_prefetch(keys + at, _MM_HINT_T1);
        _mm_prefetch(values + at, _MM_HINT_T1);
      }
    }
  }
  // `count` lines that the caller asks for; null where there are no more.
  const std::byte* take_lines(int64_t count) {
    if (lines_ == nullptr || lines_->end - lines_->next < count * kLine) return nullptr;
    const std::byte* next = lines_->next;
    lines_->next += count * kLine;
    return next;
  }

  static constexpr int64_t kLine = 64;

 private:
  LinesAhead* lines_;
  const Unit* unit_ = nullptr;
  int64_t next_ = 0, count_ = 0, bytes_ = 0;
};

// Slices of one unit's work with tiles, spread evenly over turns of another's work with vectors.
template <typename Work>
class Slices {
 public:
  Slices(int64_t count, int64_t turns, Work work) : count_(count), turns_(turns), work_(work) {}
  void turn() {
    if (turns_ <= 0) return;
    const int64_t end = next_ + (count_ - next_ + turns_ - 1) / turns_;
    --turns_;
    while (next_ < end) work_(next_++);
  }
  void finish() {
    while (next_ < count_) work_(next_++);
  }

 private:
  int64_t next_ = 0, count_, turns_;
  Work work_;
};

class Pipeline {
 public:
  explicit Pipeline(TileSource& tiles)
      : tiles_(tiles), source_(tiles), ahead_(tiles.lines_ahead()), registers_(shapes(16)) {}

  void run() {
    pull();
    if (pulled_ == 0) return;
    pull();
    take(unit(0));
    ahead_.turn_to(pulled_ > 1 ? &unit(1) : nullptr);
    for (int64_t slice = 0; slice < num_score_slices(0); ++slice) {
      score(0, slice);
      ahead_.ask(kTokens);
    }
    if (pulled_ > 1 && unit(1).is_new) take(unit(1));
    for (int64_t now = 0; now < pulled_; ++now) {
      pull();
      ahead_.turn_to(now + 2 < pulled_ ? &unit(now + 2) : nullptr);
      if (now >= 2) retire(now - 2);
      interleave(now);
      if (now + 2 < pulled_ && unit(now + 2).is_new) take(unit(now + 2));
      weigh(now);
      ahead_.ask(kSplitTokens);
    }
    const int64_t last = pulled_ - 1;
    if (last > 0) retire(last - 1);
    for (int64_t slice = 0; slice < num_sum_slices(last); ++slice) sum(last, slice);
    retire(last);
  }

 private:
  static constexpr int64_t kUnits = 8;  // five are at work

  Unit& unit(int64_t i) { return units_[i % kUnits]; }
  void pull() {
    if (has_more_ && source_.next(unit(pulled_))) {
      ++pulled_;
    } else {
      has_more_ = false;
    }
  }

  // Columns of the rest.
  static constexpr int columns_of(int64_t rest) {
    return rest == 0 || rest > 8 ? 16 : rest > 4 ? 8 : 4;
  }
  // Tiles 0 and 1: sums of sixteen queries; 2 and 3: of the rest, as columns and as rows; 4: the
  // rest's weights, 5: the rest; 6 and 7 what is multiplied.
  static constexpr amx::Config shapes_of(int columns) {
    amx::Config config;
    for (int tile = 0; tile < 8; ++tile) config.set(tile, amx::kRows, amx::kRowBytes);
    for (int tile : {2, 5}) config.set(tile, amx::kRows, columns * 4);
    for (int tile : {3, 4}) config.set(tile, columns, amx::kRowBytes);
    return config;
  }
  // Made beforehand: the instruction would wait for bytes that were only just written.
  static const amx::Config& shapes(int columns) {
    static constexpr std::array<amx::Config, 3> kShapes = {shapes_of(4), shapes_of(8),
                                                           shapes_of(16)};
    return kShapes[columns / 8];
  }
  void shape_for(int64_t rest) {
    if (rest == 0 || columns_of(rest) == columns_) return;
    columns_ = columns_of(rest);
    registers_.configure(shapes(columns_));
  }

  // Sixteen queries are a group, which two may be at once, and the rest go with the last of these.
  template <typename Work>
  static void each_pass(const Unit& unit, Work&& work) {
    const int64_t full = unit.full();
    for (int64_t group = 0; group == 0 || group < full; group += 2) {
      const bool has_rest = group + 2 >= full && unit.rest() != 0;
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

  // The unit's queries, with one a column.
  void take(const Unit& unit) {
    const int64_t head_dim = unit.head_dim();
    for (int64_t first = 0, chunk = 0; first < head_dim; first += kBlock, ++chunk) {
      for (int64_t q = 0; q < unit.num_queries; q += kLanes) {
        const int64_t count = std::min<int64_t>(unit.num_queries - q, kLanes);
        pack_columns(unit.queries + q, count, columns_of(count % kLanes), first, head_dim - first,
                     packed_[chunk][q / kLanes]);
      }
    }
  }

  int64_t num_score_slices(int64_t i) { return (unit(i).count + kTokens - 1) / kTokens; }
  int64_t num_sum_slices(int64_t i) { return (unit(i).head_dim() + kBlock - 1) / kBlock * 2; }

  // Scores of sixteen tokens, [groups of 16 queries][tokens][columns].
  void score(int64_t i, int64_t slice) {
    const Unit& u = unit(i);
    shape_for(u.rest());
    each_pass(u, [&]<int kFull, bool kRest>(int64_t group) {
      score_pass<kFull, kRest>(u, slice * kTokens, group, scores_[i % 2]);
    });
  }
  template <int kFull, bool kRest>
  void score_pass(const Unit& u, int64_t token, int64_t group, float* scores) {
    const int64_t head_dim = u.head_dim();
    const int64_t stride = u.tile->layout->token_stride * int64_t{sizeof(Bfloat16)};
    const int64_t rest = columns_of(u.rest());
    const bool is_direct = head_dim % kBlock == 0 && u.rows.is_run[token / kTokens];
    if constexpr (kFull > 0) amx::zero<0>();
    if constexpr (kFull > 1) amx::zero<1>();
    if constexpr (kRest) amx::zero<2>();
    for (int64_t first = 0, chunk = 0; first < head_dim; first += kBlock, ++chunk) {
      if (is_direct) {
        amx::load<6>(u.rows.keys[token] + first, stride);
      } else {
        for (int64_t t = 0; t < kTokens; ++t) {
          const Bfloat16* key = u.rows.keys[std::min(token + t, u.count - 1)];
          _mm512_store_si512(keys_[t], load_halves(key + first, head_dim - first));
        }
        amx::load<6>(keys_, amx::kRowBytes);
      }
      if constexpr (kFull > 0) {
        amx::load<7>(packed_[chunk][group], amx::kRowBytes);
        amx::add_bf16<0, 6, 7>();
      }
      if constexpr (kFull > 1) {
        amx::load<7>(packed_[chunk][group + 1], amx::kRowBytes);
        amx::add_bf16<1, 6, 7>();
      }
      if constexpr (kRest) {
        amx::load<5>(packed_[chunk][u.full()], rest * 4);
        amx::add_bf16<2, 6, 5>();
      }
    }
    float* out = scores + (group * kSplitTokens + token) * kLanes;
    if constexpr (kFull > 0) amx::store<0>(out, amx::kRowBytes);
    if constexpr (kFull > 1) amx::store<1>(out + kSplitTokens * kLanes, amx::kRowBytes);
    if constexpr (kRest) {
      amx::store<2>(scores + u.full() * kSplitTokens * kLanes + token * rest, rest * 4);
    }
  }

  // The unit's values; meanwhile the scores of the next one.
  void interleave(int64_t now) {
    const Unit& u = unit(now);
    const int64_t head_dim = u.head_dim(), widths = (head_dim + kWidth - 1) / kWidth;
    const int64_t chunk_tokens = 2 * kPairLines;
    const int64_t end = (u.count + chunk_tokens - 1) / chunk_tokens * kPairLines;
    Slices scores(now + 1 < pulled_ ? num_score_slices(now + 1) : 0,
                  widths * ((u.count + 2 * kFillPairs - 1) / (2 * kFillPairs)),
                  [&](int64_t slice) { score(now + 1, slice); });
    for (int64_t w = 0; w < widths; ++w) {
      const int64_t first = w * kWidth;
      PairTile& tile = values_[now % 2][w];
      fill_values(u.rows.values, u.count, first, head_dim, tile, ahead_, [&] { scores.turn(); });
      const int64_t vectors =
          std::min<int64_t>(kVectors, (head_dim - first + kBlock - 1) / kBlock * 2);
      for (int64_t p = (u.count + 1) / 2; p < end; ++p) {
        for (int64_t v = 0; v < vectors; ++v) {
          _mm512_store_si512(&tile.lines[p][v * kLanes], _mm512_setzero_si512());
        }
      }
    }
    scores.finish();
  }

  // The unit's scores become weights; meanwhile the sums of the one before.
  void weigh(int64_t now) {
    const Unit& u = unit(now);
    const int64_t groups = (u.num_queries + kLanes - 1) / kLanes;
    Slices sums(now > 0 ? num_sum_slices(now - 1) : 0,
                groups * ((u.count + kBlock - 1) / kBlock),
                [&](int64_t slice) { sum(now - 1, slice); });
    auto meanwhile = [&] { sums.turn(); };
    for (int64_t q = 0; q < u.num_queries; q += kLanes) {
      const int64_t columns = std::min<int64_t>(u.num_queries - q, kLanes);
      auto run = [&]<int kColumns>() {
        to_weights<kColumns>(scores_[now % 2] + q * kSplitTokens, u.begin, u.count, u.queries + q,
                             columns, u.state + padded(u.head_dim()), weights_[now % 2] + q, ahead_,
                             meanwhile);
      };
      switch (columns_of(columns % kLanes)) {
        case 4:
          run.template operator()<4>();
          break;
        case 8:
          run.template operator()<8>();
          break;
        default:
          run.template operator()<16>();
      }
    }
    sums.finish();
  }

  // Weighted sums [widths][queries][64] of sixteen of the values' elements.
  void sum(int64_t i, int64_t slice) {
    const Unit& u = unit(i);
    shape_for(u.rest());
    each_pass(u, [&]<int kFull, bool kRest>(int64_t group) {
      sum_pass<kFull, kRest>(u, slice / kVectors, slice % kVectors, group, weights_[i % 2],
                             values_[i % 2]);
    });
  }
  template <int kFull, bool kRest>
  void sum_pass(const Unit& u, int64_t width, int64_t v, int64_t group,
                const uint32_t (*weights)[kPairs], const PairTile* values) {
    const int64_t rest_row = u.full() * kLanes;
    const int64_t chunks = (u.count + 2 * kPairLines - 1) / (2 * kPairLines);
    float* sums = sums_[width][0] + v * kLanes;
    const std::byte* lines = ahead_.take_lines(chunks * kLinesAProduct);
    if (lines == nullptr) lines = reinterpret_cast<const std::byte*>(values);  // near already
    if constexpr (kFull > 0) amx::zero<0>();
    if constexpr (kFull > 1) amx::zero<1>();
    if constexpr (kRest) amx::zero<3>();
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t p = chunk * kPairLines;
      amx::load<6>(&values[width].lines[p][v * kLanes], kLineBytes);
      if constexpr (kFull > 0) {
        amx::load<7>(&weights[group * kLanes][p], kPairsBytes);
        amx::add_bf16<0, 7, 6>();
      }
      for (int64_t i = 0; i < kLinesAProduct; ++i, lines += UnitPrefetcher::kLine) {
        _mm_prefetch(lines, _MM_HINT_T1);
      }
      if constexpr (kFull > 1) {
        amx::load<7>(&weights[(group + 1) * kLanes][p], kPairsBytes);
        amx::add_bf16<1, 7, 6>();
      }
      if constexpr (kRest) {
        amx::load<4>(&weights[rest_row][p], kPairsBytes);
        amx::add_bf16<3, 4, 6>();
      }
    }
    if constexpr (kFull > 0) amx::store<0>(sums + group * kLanes * kWidth, kSumsBytes);
    if constexpr (kFull > 1) amx::store<1>(sums + (group + 1) * kLanes * kWidth, kSumsBytes);
    if constexpr (kRest) amx::store<3>(sums + rest_row * kWidth, kSumsBytes);
  }

  // The unit's sums go to its states.
  void retire(int64_t i) {
    const Unit& u = unit(i);
    const int64_t elements = padded(u.head_dim());
    for (int64_t first = 0; first < elements; first += kWidth) {
      const int64_t width = std::min<int64_t>(kWidth, elements - first);
      for (int64_t q = 0; q < u.num_queries; ++q) {
        put_values(sums_[first / kWidth][q], width, u.queries[q].state + u.state + first);
      }
    }
    if (i + 1 == pulled_ || unit(i + 1).tile != u.tile) tiles_.done(*u.tile);
  }

  static constexpr int64_t kLinesAProduct = 4;

  TileSource& tiles_;
  Units source_;
  UnitPrefetcher ahead_;
  amx::Tiles registers_;
  int columns_ = 16;
  int64_t pulled_ = 0;
  bool has_more_ = true;
  Unit units_[kUnits];
  alignas(64) uint32_t packed_[kMostChunks][kColumnGroups][kPairLines * kLanes];  // the next one's
  alignas(64) float scores_[2][kMaxTileQueries * kSplitTokens];
  alignas(64) uint32_t weights_[2][kMaxTileQueries][kPairs];
  PairTile values_[2][kMostWidths];
  alignas(64) float sums_[kMostWidths][kMaxTileQueries][kWidth];
  alignas(64) uint32_t keys_[kTokens][kLanes];  // of places far from each other
};

}  // namespace

void attend_bf16_tiles(TileSource& tiles) {
  if (tiles.layout().head_dim > kMostChunks * kBlock) return attend_bf16_pairs(tiles);
  Pipeline(tiles).run();
}

}  // namespace stagebeam::cpu
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
