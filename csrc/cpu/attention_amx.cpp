// Attention over bfloat16 caches with AMX: up to 32 queries' products with a split's keys or values
// at once. A sum is made of 16 pairs at a time, whatever the queries beside it.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <utility>

// The instruction set begins here, for all that follows.
#define STAGEBEAM_FEATURES ",avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16"
#include "simd_avx512.h"
//
#include "amx.h"

#define STAGEBEAM_UNROLL _Pragma("GCC unroll 16")

namespace stagebeam::cpu {
namespace {

#include "attention_pairs.h"

constexpr int64_t kTileLines = amx::kRows;  // pairs of one product
constexpr int64_t kTileQueries = amx::kRows;
constexpr int64_t kLinesAProduct = 2;  // asked for meanwhile
constexpr int64_t kLineBytes = sizeof(PairTile{}.lines[0]);
constexpr int64_t kPairsBytes = kPairs * sizeof(uint32_t);
constexpr int64_t kTargetBytes = kSplitTokens * sizeof(float);

class TileProduct {
 public:
  // A tile's rows all lie in one array.
  static constexpr bool kHasFreeTargets = false;

  // After half a microsecond without products the tiles' unit sleeps, and takes a third of one to
  // wake. This one's sum is dropped.
  static void keep_awake() { amx::add_bf16<0, 4, 6>(); }

  // For at most this many rows.
  explicit TileProduct(int64_t most_rows) : tiles_(shapes(most_rows)) {}

  void run(const uint32_t (*pairs)[kPairs], int64_t num_rows, PairTile& tile, int64_t num_pairs,
           int64_t width, bool is_first, float* const* targets, Prefetcher& ahead) const {
    const int64_t whole = (num_pairs + kTileLines - 1) / kTileLines * kTileLines;
    const int64_t columns = (width + kLanes - 1) / kLanes;
    for (int64_t p = num_pairs; p < whole; ++p) {
      for (int64_t v = 0; v < columns; ++v) {
        _mm512_store_si512(&tile.lines[p][v * kLanes], _mm512_setzero_si512());
      }
    }
    for (int64_t row = 0; row < num_rows; row += 2 * kTileQueries) {
      const bool is_pair = num_rows - row > kTileQueries;
      for (int64_t v = 0; v < columns; v += 2) {
        const std::byte* lines = ahead.take_lines(whole / kTileLines * 4 * kLinesAProduct);
        if (lines == nullptr) lines = reinterpret_cast<const std::byte*>(&tile);  // near already
        const bool is_last = v + 1 == columns;
        (is_pair   ? is_last ? multiply<2, 1> : multiply<2, 2>
         : is_last ? multiply<1, 1>
                   : multiply<1, 2>)(pairs[row], &tile.lines[0][v * kLanes], whole, is_first,
                                     targets[row] + v * kLanes, lines);
      }
    }
  }

 private:
  // Sums in tiles 0 .. 3, queries or weights in 4 and 5, keys or values in 6 and 7.
  static amx::Config shapes(int64_t most_rows) {
    const int64_t first = std::min(most_rows, kTileQueries);
    // More rows than two tiles take are rounded up.
    const int64_t second = std::min(most_rows - first, kTileQueries);
    amx::Config config;
    for (int tile = 0; tile < 8; ++tile) config.set(tile, amx::kRows, amx::kRowBytes);
    for (int tile : {0, 1, 4}) config.set(tile, static_cast<int>(first), amx::kRowBytes);
    if (second > 0) {
      for (int tile : {2, 3, 5}) config.set(tile, static_cast<int>(second), amx::kRowBytes);
    }
    return config;
  }

  // Sums of R tiles of rows and C of 16 columns.
  template <int R, int C>
  static void multiply(const uint32_t* rows, const uint32_t* lines, int64_t pairs, bool is_first,
                       float* target, const std::byte* ahead) {
    float* second = target + kTileQueries * kSplitTokens;
    if (is_first) {
      amx::zero<0>();
      if constexpr (C == 2) amx::zero<1>();
      if constexpr (R == 2) amx::zero<2>();
      if constexpr (R == 2 && C == 2) amx::zero<3>();
    } else {
      amx::load<0>(target, kTargetBytes);
      if constexpr (C == 2) amx::load<1>(target + kLanes, kTargetBytes);
      if constexpr (R == 2) amx::load<2>(second, kTargetBytes);
      if constexpr (R == 2 && C == 2) amx::load<3>(second + kLanes, kTargetBytes);
    }
    auto ask = [&] {
      for (int64_t i = 0; i < kLinesAProduct; ++i, ahead += Prefetcher::kLine) {
        _mm_prefetch(ahead, _MM_HINT_T1);
      }
    };
    for (int64_t p = 0; p < pairs; p += kTileLines) {
      amx::load<4>(rows + p, kPairsBytes);
      amx::load<6>(lines + p * kWidth, kLineBytes);
      amx::add_bf16<0, 4, 6>();
      ask();
      if constexpr (C == 2) {
        amx::load<7>(lines + p * kWidth + kLanes, kLineBytes);
        amx::add_bf16<1, 4, 7>();
      }
      ask();
      if constexpr (R == 2) {
        amx::load<5>(rows + kTileQueries * kPairs + p, kPairsBytes);
        amx::add_bf16<2, 5, 6>();
      }
      ask();
      if constexpr (R == 2 && C == 2) amx::add_bf16<3, 5, 7>();
      ask();
    }
    amx::store<0>(target, kTargetBytes);
    if constexpr (C == 2) amx::store<1>(target + kLanes, kTargetBytes);
    if constexpr (R == 2) amx::store<2>(second, kTargetBytes);
    if constexpr (R == 2 && C == 2) amx::store<3>(second + kLanes, kTargetBytes);
  }

  amx::Tiles tiles_;
};

}  // namespace

void attend_bf16_tiles(const Tile& tile) {
  attend_tile<TileProduct>(tile);
}

}  // namespace stagebeam::cpu
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
