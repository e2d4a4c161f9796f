// Attention over bfloat16 caches with AMX. Scores are keys, straight from the cache, times queries,
// which are transposed once a split: a column is a query, so that softmax needs no sums
// across a vector. Weighted sums are weights times interleaved values. A sum is made of 16 pairs at
// a time, whatever the queries beside it.
//
// A processor with AMX takes as long for tiles and vectors side by side as for one after the other:
// what counts is how many instructions there are, tiles' loads and stores above all.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <utility>

// The instruction set begins here, for all that follows.
#include "amx.h"

#define STAGEBEAM_UNROLL _Pragma("GCC unroll 16")

namespace stagebeam::cpu {
namespace {

#include "attention_pairs.h"

// After half a microsecond without products the tiles' unit sleeps, and takes a third of one to
// wake. This one's sum is dropped.
inline void keep_awake() {
  amx::add_bf16<2, 4, 6>();
}

//
#include "attention_columns.h"
#include "attention_units.h"

constexpr int kTokens = amx::kRows;           // of a product of keys
constexpr int kChunkTokens = 2 * amx::kRows;  // of a product of values
constexpr int kColumnGroups = kMaxTileQueries / kLanes;
constexpr int64_t kMostChunks = 8;                               // of 16 pairs of a head's elements
constexpr int64_t kScoresSize = kSplitTokens * kLanes + kLanes;  // a row may be stored too wide

// Calls work.operator()<i>() for i in 0 .. kCount - 1.
template <int kCount, typename Work>
inline __attribute__((always_inline)) void each(Work&& work) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (work.template operator()<I>(), ...);
  }(std::make_integer_sequence<int, kCount>{});
}

// Which tiles hold what. Four sums are made side by side, of kGroups groups of queries times
// kOthers blocks of sixteen tokens or elements; operands take turns, since a tile that is read is
// not written meanwhile.
template <int kGroups>
struct Full {
  static constexpr int kNumGroups = kGroups, kOthers = 4 / kGroups;
  static constexpr int score(int other, int group) { return other * kGroups + group; }
  static constexpr int sum(int other, int group) { return other * kGroups + group; }
  static constexpr int row(int other) { return 4 + other % 2; }  // keys or values
  static constexpr int query(int group) { return 6 + group; }
  static constexpr int weight(int group) { return 6 + group; }
};
// Up to eight queries: weights and sums have so many rows, which take half as long, and scores so
// many columns.
struct Few {
  static constexpr int kNumGroups = 1, kOthers = 2;
  static constexpr int score(int other, int) { return other; }
  static constexpr int sum(int other, int) { return 2 + other; }
  static constexpr int row(int other) { return 6 + other; }
  static constexpr int query(int) { return 5; }
  static constexpr int weight(int) { return 4; }
};

class TileAttention {
 public:
  explicit TileAttention(TileSource& tiles)
      : tiles_(tiles), source_(tiles), ahead_(tiles.lines_ahead()), registers_(shapes(16)) {}

  void run() {
    bool has_unit = source_.next(units_[0]);
    for (int i = 0; has_unit; i ^= 1) {
      const Unit &unit = units_[i], &next = units_[i ^ 1];
      const bool has_next = source_.next(units_[i ^ 1]);
      rows_ahead_.start(unit, has_next ? &next : nullptr, num_steps(unit));
      attend(unit);
      if (!has_next || next.tile != unit.tile) tiles_.done(*unit.tile);
      has_unit = has_next;
    }
  }

 private:
  static constexpr int64_t kFew = 8;
  static constexpr int64_t kLinesAhead = 8;

  static constexpr int columns_of(int64_t queries) {
    return queries > 8 ? 16 : queries > 4 ? 8 : 4;
  }
  static constexpr amx::Config shapes_of(int rows) {
    amx::Config config;
    for (int tile = 0; tile < 8; ++tile) config.set(tile, amx::kRows, amx::kRowBytes);
    for (int tile : {Few::sum(0, 0), Few::sum(1, 0), Few::weight(0)}) {
      config.set(tile, rows, amx::kRowBytes);
    }
    for (int tile : {Few::score(0, 0), Few::score(1, 0), Few::query(0)}) {
      config.set(tile, amx::kRows, rows * 4);
    }
    return config;
  }
  // Made beforehand: the instruction would wait for bytes that were only just written.
  static const amx::Config& shapes(int rows) {
    static constexpr std::array<amx::Config, 3> kShapes = {shapes_of(4), shapes_of(8),
                                                           shapes_of(16)};
    return kShapes[rows / 8];
  }

  // About how often a unit's work calls step().
  static int64_t num_steps(const Unit& u) {
    const int64_t lines = (u.count + kBlock - 1) / kBlock;
    const int64_t blocks = (u.head_dim() + kBlock - 1) / kBlock, groups = u.num_groups();
    const int64_t columns = columns_of(std::min<int64_t>(u.num_queries, kLanes));
    return lines * (6 * blocks * ((groups + 1) / 2) + columns / 2 * groups);
  }

  void attend(const Unit& u) {
    const bool is_few = u.num_queries <= kFew;
    const int rows = is_few ? columns_of(u.num_queries) : amx::kRows;
    if (rows != rows_) registers_.configure(shapes(rows));
    rows_ = rows;
    take(u);
    each_pair(u, [&]<typename R>(int64_t group) { score<R>(u, group); });
    for (int64_t group = 0; group < u.num_groups(); ++group) weigh(u, group);
    each_pair(u, [&]<typename R>(int64_t group) { sum<R>(u, group); });
  }

  // Calls work.operator()<R>(group) for every two groups from `group` on, or the last.
  template <typename Work>
  void each_pair(const Unit& u, Work&& work) {
    if (u.num_queries <= kFew) return work.template operator()<Few>(0);
    for (int64_t group = 0; group < u.num_groups(); group += 2) {
      if (group + 1 < u.num_groups()) {
        work.template operator()<Full<2>>(group);
      } else {
        work.template operator()<Full<1>>(group);
      }
    }
  }

  // The unit's queries, with one a column.
  void take(const Unit& u) {
    const int64_t head_dim = u.head_dim();
    for (int64_t first = 0, chunk = 0; first < head_dim; first += kBlock, ++chunk) {
      for (int64_t group = 0; group < u.num_groups(); ++group) {
        const int64_t count = u.group_size(group);
        pack_columns(u.queries + group * kLanes, count, columns_of(count), first, head_dim - first,
                     packed_[chunk][group]);
      }
    }
  }

  // Scores of groups `group` .. group + kNumGroups - 1, [groups][tokens][columns]. Fewer columns
  // than 16 are stored row over row: what is too wide of one is overwritten by the next.
  template <typename R>
  void score(const Unit& u, int64_t group) {
    const int64_t head_dim = u.head_dim();
    const int64_t stride = u.tile->layout->token_stride * int64_t{sizeof(Bfloat16)};
    int64_t columns[R::kNumGroups];
    for (int g = 0; g < R::kNumGroups; ++g) columns[g] = columns_of(u.group_size(group + g)) * 4;
    for (int64_t token = 0; token < u.count; token += R::kOthers * kTokens) {
      const int64_t others =
          (std::min<int64_t>(u.count - token, R::kOthers * kTokens) + kTokens - 1) / kTokens;
      each<R::kOthers>([&]<int kOther>() {
        each<R::kNumGroups>([&]<int kGroup>() { amx::zero<R::score(kOther, kGroup)>(); });
      });
      for (int64_t first = 0, chunk = 0; first < head_dim; first += kBlock, ++chunk) {
        each<R::kNumGroups>([&]<int kGroup>() {
          amx::load<R::query(kGroup)>(packed_[chunk][group + kGroup], columns[kGroup]);
        });
        each<R::kOthers>([&]<int kOther>() {
          if (kOther >= others) return;
          load_keys<R::row(kOther)>(u, token + kOther * kTokens, first, stride);
          rows_ahead_.step();
          each<R::kNumGroups>([&]<int kGroup>() {
            amx::add_bf16<R::score(kOther, kGroup), R::row(kOther), R::query(kGroup)>();
          });
        });
      }
      each<R::kOthers>([&]<int kOther>() {
        if (kOther >= others) return;
        each<R::kNumGroups>([&]<int kGroup>() {
          float* scores =
              scores_[group + kGroup] + (token + kOther * kTokens) * columns[kGroup] / 4;
          amx::store<R::score(kOther, kGroup)>(scores, columns[kGroup]);
        });
      });
    }
  }
  // Elements first .. first + 31 of sixteen tokens' keys.
  template <int kTile>
  void load_keys(const Unit& u, int64_t token, int64_t first, int64_t stride) {
    const int64_t head_dim = u.head_dim();
    if (head_dim % kBlock == 0 && u.rows.is_run[token / kTokens]) {
      amx::load<kTile>(u.rows.keys[token] + first, stride);
      return;
    }
    for (int64_t t = 0; t < kTokens; ++t) {
      const Bfloat16* key = u.rows.keys[std::min(token + t, u.count - 1)];
      _mm512_store_si512(keys_[t], load_halves(key + first, head_dim - first));
    }
    amx::load<kTile>(keys_, amx::kRowBytes);
  }

  // A group's scores become weights.
  void weigh(const Unit& u, int64_t group) {
    const int64_t columns = u.group_size(group);
    auto run = [&]<int kColumns>() {
      to_weights<kColumns>(scores_[group], u.tile->begin, u.count, u.queries + group * kLanes,
                           columns, padded(u.head_dim()), [&] { rows_ahead_.step(); });
    };
    switch (columns_of(columns)) {
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

  // Weighted sums of groups `group` .. group + kNumGroups - 1, to the states.
  template <typename R>
  void sum(const Unit& u, int64_t group) {
    constexpr int64_t kElements = R::kOthers * kLanes;
    const int64_t head_dim = u.head_dim(), chunks = (u.count + kChunkTokens - 1) / kChunkTokens;
    for (int64_t first = 0; first < head_dim; first += kElements) {
      const int64_t width = std::min(kElements, head_dim - first);
      const int64_t others = (width + kBlock - 1) / kBlock * 2;
      each<R::kOthers>([&]<int kOther>() {
        each<R::kNumGroups>([&]<int kGroup>() { amx::zero<R::sum(kOther, kGroup)>(); });
      });
      // What was only just stored would be waited for: values are made a chunk ahead.
      fill_chunk(u, 0, first, width);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        if (chunk + 1 < chunks) fill_chunk(u, chunk + 1, first, width);
        each<R::kNumGroups>([&]<int kGroup>() {
          // Rows behind the columns are whatever lies there; their sums are not used.
          const int64_t columns = columns_of(u.group_size(group + kGroup));
          amx::load<R::weight(kGroup)>(scores_[group + kGroup] + chunk * kChunkTokens * columns,
                                       amx::kRowBytes);
        });
        each<R::kOthers>([&]<int kOther>() {
          if (kOther >= others) return;
          amx::load<R::row(kOther)>(values_[chunk % 2][0] + kOther * kLanes, sizeof(values_[0][0]));
          each<R::kNumGroups>([&]<int kGroup>() {
            amx::add_bf16<R::sum(kOther, kGroup), R::weight(kGroup), R::row(kOther)>();
          });
        });
        rows_ahead_.step(4);
        ask_ahead();
      }
      each<R::kOthers>([&]<int kOther>() {
        if (kOther >= others) return;
        each<R::kNumGroups>([&]<int kGroup>() {
          amx::store<R::sum(kOther, kGroup)>(sums_[kGroup * kLanes] + kOther * kLanes,
                                             sizeof(sums_[0]));
        });
      });
      const int64_t wanted = std::min(kElements, padded(head_dim) - first);
      const int64_t count =
          std::min<int64_t>(u.num_queries - group * kLanes, R::kNumGroups * kLanes);
      for (int64_t q = 0; q < count; ++q) {
        put_values(sums_[q], wanted, u.queries[group * kLanes + q].state + first);
      }
    }
  }
  // Values of a chunk's tokens, zeros behind the last one.
  void fill_chunk(const Unit& u, int64_t chunk, int64_t first, int64_t width) {
    const int64_t token = chunk * kChunkTokens;
    const int64_t count = std::min<int64_t>(u.count - token, kChunkTokens);
    uint32_t (*lines)[kWidth] = values_[chunk % 2];
    fill_values(u.rows.values + token, count, first, width, lines, [] {});
    for (int64_t p = (count + 1) / 2; p < kChunkPairs; ++p) {
      for (int64_t d = 0; d < width; d += kBlock) {
        _mm512_store_si512(lines[p] + d, _mm512_setzero_si512());
        _mm512_store_si512(lines[p] + d + kLanes, _mm512_setzero_si512());
      }
    }
  }

  // Some of what the thread reads after its attention.
  void ask_ahead() {
    if (ahead_ == nullptr || ahead_->end - ahead_->next < kLinesAhead * kLineBytes) return;
    for (int64_t i = 0; i < kLinesAhead; ++i, ahead_->next += kLineBytes) {
      _mm_prefetch(ahead_->next, _MM_HINT_T1);
    }
  }

  static constexpr int kChunkPairs = kChunkTokens / 2;

  TileSource& tiles_;
  Units source_;
  LinesAhead* ahead_;
  RowsAhead rows_ahead_;
  amx::Tiles registers_;
  int rows_ = 16;
  Unit units_[2];
  alignas(64) uint32_t packed_[kMostChunks][kColumnGroups][kLanes * kLanes];
  alignas(64) float scores_[kColumnGroups][kScoresSize];
  alignas(64) uint32_t values_[2][kChunkPairs][kWidth];
  alignas(64) float sums_[2 * kLanes][kWidth];
  alignas(64) uint32_t keys_[kTokens][kLanes];  // of places far from each other
};

}  // namespace

void attend_bf16_tiles(TileSource& tiles) {
  if (tiles.layout().head_dim > kMostChunks * kBlock) return attend_bf16_pairs(tiles);
  TileAttention(tiles).run();
}

}  // namespace stagebeam::cpu
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
