// The integer products with AMX: exact dots for up to 16 rows at once, then the float multiply-adds
// of integer_kernels.h in their order: the same bits.
//
// A tile of sums takes as long to store for one row as for 16, so a product has 16 where it can: up
// to 8 rows of int8 meet two groups in one.
#if defined(__x86_64__)
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "linear_tables.h"
// The instruction set begins here, for all that follows.
#include "amx.h"
#include "integer_avx512.h"

namespace stagebeam {

// A name of its own, so that no template is shared with code for machines without AMX.
struct SimdAmxIntegers : SimdAvx512 {};

namespace kernels {

template <>
struct Rounding<SimdAmxIntegers> : RoundingAvx512 {};

namespace {

using S = SimdAmxIntegers;
constexpr int kGroupBytes = kGroupSize * kPanelRows;  // of weights as bytes
constexpr int kSums = 0, kX = 1, kWeights = 2;        // tiles
constexpr int kSlots = 4;                             // of unpacked weights, where they pass by

// Fewer rows are faster in registers. int4's 7 and 8 rows are faster here alone, yet not in a step.
constexpr int least_rows(WeightFormat format) {
  return format == WeightFormat::kInt4 ? 9 : 5;
}

// Groups of a product of so many rows.
constexpr int groups_at_once(int rows) {
  return rows <= amx::kRows / 2 ? 2 : 1;
}

// `rows` rows of rounded activations: a tile for each product, then for each group the rows' scales
// and their sums times these (see IntegerGroup). Where a product has two groups a row stands twice
// in its tile: with its numbers of the first group and zeros, below with zeros and the second's.
struct Piece {
  int64_t tile_bytes, line_bytes;
  int rows, is_pair;
  std::byte* tiles;
  float* scales;  // [groups, 2, rows]

  static int64_t num_bytes(int64_t groups, int rows) {
    const int64_t at_once = groups_at_once(rows), steps = (groups + at_once - 1) / at_once;
    const int64_t tile_bytes = at_once * rows * at_once * kGroupSize;
    return (steps * tile_bytes + groups * rows * 2 * int64_t{sizeof(float)} + 63) / 64 * 64;
  }
  Piece(std::byte* memory, int64_t groups, int num_rows)
      : tile_bytes(num_rows * kGroupSize),
        line_bytes(kGroupSize),
        rows(num_rows),
        is_pair(groups_at_once(num_rows) - 1),
        tiles(memory) {
    if (is_pair) tile_bytes *= 4, line_bytes *= 2;
    scales = reinterpret_cast<float*>(tiles + ((groups + is_pair) >> is_pair) * tile_bytes);
  }

  // Before the rows are set.
  void clear(int64_t groups) const {
    if (is_pair) std::memset(tiles, 0, static_cast<size_t>((groups + 1) / 2 * tile_bytes));
  }
  // Rounds `count` numbers to row `row`.
  void set(int row, const float* x, int64_t count, float factor) const {
    const int64_t second = rows * line_bytes + kGroupSize;
    auto place = [=, *this](int64_t g) {
      std::byte* tile = tiles + (g >> is_pair) * tile_bytes;
      return reinterpret_cast<int8_t*>(tile + row * line_bytes + (g & is_pair) * second);
    };
    Rounding<S>::row(x, count, factor, place, [=, *this](int64_t g, float scale, int32_t sum) {
      scales[2 * g * rows + row] = scale;
      scales[(2 * g + 1) * rows + row] = scale * static_cast<float>(sum);
    });
  }
};

// 4-bit weights of a group as bytes: the lines of an int8 panel's group.
STAGEBEAM_INLINE inline void unpack_group(const std::byte* lines, std::byte* out) {
  const __m512i mask = _mm512_set1_epi8(15);
  STAGEBEAM_UNROLL for (int i = 0; i < kGroupSize / 8; ++i) {
    const __m512i words = S::load_words(lines + i * kLineBytes);
    _mm512_store_si512(out + 2 * i * kLineBytes, _mm512_and_si512(words, mask));
    _mm512_store_si512(out + (2 * i + 1) * kLineBytes,
                       _mm512_and_si512(_mm512_srli_epi16(words, 4), mask));
  }
}

// Panels whose weights become bytes, of int4.
struct Panels {
  int64_t first, end;
  std::byte* bytes;  // [slots, kGroupBytes], used in turns
  int64_t slots;
  bool is_new;  // not asked for and not unpacked yet
};

// Some panels times a piece of R rows, to rows row .. row + rows - 1 of the result.
//
// What is stored in lines and loaded in tiles, or the other way round, would wait for its store: so
// unpacking runs ahead of products and those ahead of multiply-adds, from one panel into the next.
template <WeightFormat kFormat, int R>
void multiply_panels(const LinearTask& task, const Panels& panels, const Piece& piece, int64_t row,
                     int64_t rows) {
  constexpr PanelLayout kLayout = panel_layout(kFormat);
  constexpr bool kIsInt4 = kFormat == WeightFormat::kInt4;
  static_assert(R >= least_rows(kFormat));
  constexpr int kAtOnce = groups_at_once(R), kLineWidth = kAtOnce * kGroupSize;
  constexpr int64_t kTileBytes = kAtOnce * R * kLineWidth;
  constexpr int64_t kBlockGroups = kLayout.block_k / kGroupSize,
                    kBlockBytes = kLayout.block_bytes();
  constexpr int kBlockLines = kBlockBytes / kLineBytes;
  const int64_t groups = (task.in_features + kGroupSize - 1) / kGroupSize;
  const int64_t panel_bytes = task.panel_bytes, slots = panels.slots;
  const bool is_new = panels.is_new;
  std::byte* const bytes = panels.bytes;
  const std::byte* const tiles = piece.tiles;
  const float* const all_scales = piece.scales;
  alignas(64) int32_t dots[2][kAtOnce * R * kPanelRows];

  struct Place {
    const std::byte* panel;
    int64_t panels, group = 0, slot = 0;
  };
  auto advance = [&](Place& at) STAGEBEAM_INLINE {
    if (++at.slot == slots) at.slot = 0;
    at.group += kAtOnce;
    if (at.group < groups) return;
    at.group = 0;
    at.panel += panel_bytes;
    --at.panels;
  };
  auto block_of = [](const std::byte* panel, int64_t group)
                      STAGEBEAM_INLINE { return panel + group / kBlockGroups * kBlockBytes; };
  auto ask = [&](const Place& at) STAGEBEAM_INLINE {
    if (!is_new || at.group % kBlockGroups != 0) return;
    const std::byte* line = block_of(at.panel, at.group);
    STAGEBEAM_UNROLL for (int i = 0; i < kBlockLines; ++i) {
      _mm_prefetch(line + kIntegerBytesNear + i * kLineBytes, _MM_HINT_T0);
    }
    ask_for_next_window<kBlockLines>(line);
  };
  const std::byte* first = task.panel(panels.first);
  Place unpacked{first, panels.end - panels.first}, multiplied = unpacked;
  auto unpack = [&]() STAGEBEAM_INLINE {
    if (!kIsInt4 || unpacked.panels == 0) return;
    if (is_new) {
      unpack_group(block_of(unpacked.panel, unpacked.group) + kLayout.scale_bytes,
                   bytes + unpacked.slot * kGroupBytes);
      ask(unpacked);
    }
    advance(unpacked);
  };
  int64_t products = 0;
  auto multiply = [&]() STAGEBEAM_INLINE {
    if (products > 0) amx::store<kSums>(dots[(products - 1) % 2], kLineBytes);
    if (multiplied.panels == 0) return;
    amx::load<kX>(tiles + multiplied.group / kAtOnce * kTileBytes, kLineWidth);
    amx::zero<kSums>();
    if constexpr (kIsInt4) {
      amx::load<kWeights>(bytes + multiplied.slot * kGroupBytes, kLineBytes);
      amx::add_uint8<kSums, kX, kWeights>();
    } else {
      const std::byte* lines = block_of(multiplied.panel, multiplied.group) + kLayout.scale_bytes;
      amx::load<kWeights>(lines + multiplied.group % kBlockGroups * kGroupBytes, kLineBytes);
      amx::add_int8<kSums, kX, kWeights>();
      ask(multiplied);
    }
    ++products;
    advance(multiplied);
  };

  for (int i = 0; i < kSlots - 1; ++i) unpack();
  multiply();
  unpack();
  multiply();
  unpack();
  const int64_t unit = task.epilogue.kind == Epilogue::Kind::kSiluMul ? 2 : 1;
  int64_t added = 0;
  for (int64_t panel = panels.first; panel < panels.end; ++panel) {
    __m512 sums[R];
    STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) sums[r] = S::zero();
    const std::byte* weights = task.panel(panel);
    auto add = [&](int64_t g, const int32_t* group_dots) STAGEBEAM_INLINE {
      const auto* bits = reinterpret_cast<const uint16_t*>(block_of(weights, g));
      const float* scales = all_scales + 2 * g * R;
      __m512 step, least = S::zero();
      if constexpr (kIsInt4) {
        step = S::load_fp16(bits);
        least = S::load_fp16(bits + kPanelRows);
      } else {
        step = S::load_bf16(bits + g % kBlockGroups * kPanelRows);
      }
      STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
        const __m512 dot = _mm512_cvtepi32_ps(S::load_words(group_dots + r * kPanelRows));
        sums[r] = S::fma(S::mul(dot, step), S::set1(scales[r]), sums[r]);
        if constexpr (kIsInt4) sums[r] = S::fma(least, S::set1(scales[R + r]), sums[r]);
      }
    };
    for (int64_t g = 0; g < groups; g += kAtOnce, ++added) {
      multiply();
      unpack();
      add(g, dots[added % 2]);
      if (kAtOnce == 2 && g + 1 < groups) add(g + 1, dots[added % 2] + R * kPanelRows);
    }
    float* out = task.sums + (panel - panels.first) % unit * kPanelRows;
    STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) S::store(out + r * unit * kPanelRows, sums[r]);
    if ((panel - panels.first) % unit != unit - 1) continue;
    finish<S>(task, task.sums, unit * kPanelRows, row, rows, panel / unit * kPanelRows);
    if (panel + 1 < panels.end) ask_for_out(task, row, rows, panel + 1);
  }
}

using PanelsFunction = void (*)(const LinearTask&, const Panels&, const Piece&, int64_t, int64_t);
template <WeightFormat kFormat>
struct PanelsTable {
  static constexpr int kNumRows = amx::kRows - least_rows(kFormat) + 1;
  PanelsFunction run[kNumRows];  // [rows - least_rows]

  template <int... R>
  static constexpr PanelsTable make(std::integer_sequence<int, R...>) {
    return {{&multiply_panels<kFormat, R + least_rows(kFormat)>...}};
  }
};
template <WeightFormat kFormat>
constexpr PanelsTable<kFormat> kPanelsTable =
    PanelsTable<kFormat>::make(std::make_integer_sequence<int, PanelsTable<kFormat>::kNumRows>{});

amx::Config config_of(int rows) {
  const int at_once = groups_at_once(rows);
  amx::Config config;
  config.set(kSums, at_once * rows, kLineBytes);
  config.set(kX, at_once * rows, at_once * kGroupSize);
  config.set(kWeights, at_once * kGroupBytes / kLineBytes, kLineBytes);
  return config;
}

// Rows row .. row + rows - 1, which are rounded once: pieces of as many rows as each other, the
// last one's after `rows` being whatever memory holds.
template <WeightFormat kFormat>
void multiply_rows(const LinearTask& task, int64_t row, int64_t rows, int64_t first, int64_t end) {
  constexpr bool kIsInt4 = kFormat == WeightFormat::kInt4;
  constexpr int kLeast = least_rows(kFormat);
  const int64_t unit = task.epilogue.kind == Epilogue::Kind::kSiluMul ? 2 : 1;
  const int64_t groups = (task.in_features + kGroupSize - 1) / kGroupSize;
  const int64_t pieces = (rows + amx::kRows - 1) / amx::kRows;
  const int64_t even = (rows + pieces - 1) / pieces;
  const int size = static_cast<int>(even < kLeast ? kLeast : even);
  std::byte* x = task.integers + (kIsInt4 ? 2 * groups * kGroupBytes : 0);
  const int64_t x_bytes = Piece::num_bytes(groups, size);
  auto piece_of = [&](int64_t piece) { return Piece(x + piece * x_bytes, groups, size); };
  for (int64_t r = 0; r < rows; ++r) {
    if (r % size == 0) piece_of(r / size).clear(groups);
    piece_of(r / size).set(static_cast<int>(r % size), task.x.data + (row + r) * task.x.stride,
                           task.in_features, kIsInt4 ? 1.0f / kInt4Factor : 1.0f);
  }
  const auto multiply = kPanelsTable<kFormat>.run[size - kLeast];
  const amx::Tiles tiles(config_of(size));
  if (pieces == 1) {
    alignas(64) std::byte bytes[kSlots * kGroupBytes];
    ask_for_out(task, row, rows, first);
    return multiply(task, {first, end, bytes, kSlots, true}, piece_of(0), row, rows);
  }
  // Panels stay near, as bytes, while they meet the pieces.
  for (int64_t panel = first; panel < end; panel += unit) {
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t left = rows - piece * size;
      multiply(task, {panel, panel + unit, task.integers, unit * groups, piece == 0},
               piece_of(piece), row + piece * size, left < size ? left : size);
    }
  }
}

}  // namespace

void multiply_rounded_amx_integers(const LinearTask& task, WeightFormat format, int64_t first,
                                   int64_t end) {
  if (task.num_rows < least_rows(format)) {
    return multiply_rounded_avx512(task, format, first, end);
  }
  for (int64_t row = 0; row < task.num_rows; row += kIntegerRows) {
    const int64_t left = task.num_rows - row, rows = left < kIntegerRows ? left : kIntegerRows;
    if (format == WeightFormat::kInt4) {
      multiply_rows<WeightFormat::kInt4>(task, row, rows, first, end);
    } else {
      multiply_rows<WeightFormat::kInt8>(task, row, rows, first, end);
    }
  }
}

}  // namespace kernels
}  // namespace stagebeam
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
