// The integer products with AMX: a group's exact dots for up to 16 rows at once, in a tile of their
// own, then the float multiply-adds of integer_kernels.h in their order: the same bits.
//
// A tile of sums takes as long to store for one row as for 16: few rows are faster in registers.
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
constexpr int kLeastRows = 9;                         // fewer take less time in registers
// How far ahead of their use few rows ask for weights, in the second and in the first cache.
constexpr int64_t kBytesAhead = 16384, kBytesNear = 2048;

// `rows` rows of rounded activations: a tile for each group, then for each group the rows' scales
// and their sums times these (see IntegerGroup).
struct Piece {
  std::byte* tiles;
  float* scales;  // [groups, 2, rows]

  static int64_t num_bytes(int64_t groups, int rows) {
    return (groups * rows * (kGroupSize + 2 * int64_t{sizeof(float)}) + 63) / 64 * 64;
  }
  Piece(std::byte* memory, int64_t groups, int rows)
      : tiles(memory), scales(reinterpret_cast<float*>(memory + groups * rows * kGroupSize)) {}

  // Rounds `count` numbers to row `row`.
  void set(int row, int rows, const float* x, int64_t count, float factor) const {
    auto place = [&](int64_t g) {
      return reinterpret_cast<int8_t*>(tiles + (g * rows + row) * kGroupSize);
    };
    Rounding<S>::row(x, count, factor, place, [&](int64_t g, float scale, int32_t sum) {
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

// What a kernel is told of a panel.
struct Panel {
  const std::byte* packed;
  std::byte* unpacked;     // of int4: [groups, kGroupBytes]
  bool is_new;             // not unpacked yet
  const std::byte* ahead;  // lines that are asked for, so many with each group
  int64_t lines_ahead;
};

// One panel times a piece of R rows, over all of K, to out [R, kPanelRows].
template <WeightFormat kFormat, int R>
void multiply_groups(Panel panel, const Piece& x, int64_t groups, float* out, int64_t out_stride) {
  constexpr PanelLayout kLayout = panel_layout(kFormat);
  constexpr bool kIsInt4 = kFormat == WeightFormat::kInt4;
  constexpr int kBlockGroups = kLayout.block_k / kGroupSize;
  // What is stored in lines and loaded in tiles, or the other way round, would wait for its store.
  constexpr int kDelay = 2, kDots = 4, kUnpackAhead = 3;
  alignas(64) int32_t dots[kDots][R * kPanelRows];
  auto block_of = [&](int64_t g) {
    return panel.packed + g / kBlockGroups * kLayout.block_bytes();
  };
  auto unpack = [&](int64_t g) STAGEBEAM_INLINE {
    if (!panel.is_new || g >= groups) return;
    unpack_group(block_of(g) + kLayout.scale_bytes, panel.unpacked + g * kGroupBytes);
  };
  auto multiply = [&](int64_t g) STAGEBEAM_INLINE {
    for (int64_t i = 0; i < panel.lines_ahead; ++i, panel.ahead += kLineBytes) {
      _mm_prefetch(panel.ahead, _MM_HINT_T1);
      _mm_prefetch(panel.ahead - (kBytesAhead - kBytesNear), _MM_HINT_T0);
    }
    amx::load<kX>(x.tiles + g * R * kGroupSize, kGroupSize);
    amx::zero<kSums>();
    if constexpr (kIsInt4) {
      unpack(g + kUnpackAhead);
      amx::load<kWeights>(panel.unpacked + g * kGroupBytes, kLineBytes);
      amx::add_uint8<kSums, kX, kWeights>();
    } else {
      amx::load<kWeights>(block_of(g) + kLayout.scale_bytes + g % kBlockGroups * kGroupBytes,
                          kLineBytes);
      amx::add_int8<kSums, kX, kWeights>();
    }
    amx::store<kSums>(dots[g % kDots], kLineBytes);
  };

  __m512 sums[R];
  STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) sums[r] = S::zero();
  auto add = [&](int64_t g) STAGEBEAM_INLINE {
    const auto* bits = reinterpret_cast<const uint16_t*>(block_of(g));
    const float* scales = x.scales + 2 * g * R;
    __m512 step, least = S::zero();
    if constexpr (kIsInt4) {
      step = S::load_fp16(bits);
      least = S::load_fp16(bits + kPanelRows);
    } else {
      step = S::load_bf16(bits + g % kBlockGroups * kPanelRows);
    }
    STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
      const __m512 scale = S::mul(step, S::set1(scales[r]));
      const __m512 dot = _mm512_cvtepi32_ps(S::load_words(dots[g % kDots] + r * kPanelRows));
      sums[r] = S::fma(dot, scale, sums[r]);
      if constexpr (kIsInt4) sums[r] = S::fma(least, S::set1(scales[R + r]), sums[r]);
    }
  };

  for (int64_t g = 0; kIsInt4 && g < kUnpackAhead; ++g) unpack(g);
  for (int64_t g = 0; g < groups + kDelay; ++g) {
    if (g < groups) multiply(g);
    if (g >= kDelay) add(g - kDelay);
  }
  STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) S::store(out + r * out_stride, sums[r]);
}

using GroupsFunction = void (*)(Panel, const Piece&, int64_t, float*, int64_t);
template <WeightFormat kFormat>
struct GroupsTable {
  GroupsFunction run[amx::kRows - kLeastRows + 1];  // [rows - kLeastRows]

  template <int... R>
  static constexpr GroupsTable make(std::integer_sequence<int, R...>) {
    return {{&multiply_groups<kFormat, R + kLeastRows>...}};
  }
};
template <WeightFormat kFormat>
constexpr GroupsTable<kFormat> kGroupsTable =
    GroupsTable<kFormat>::make(std::make_integer_sequence<int, amx::kRows - kLeastRows + 1>{});

amx::Config config_of(int rows) {
  amx::Config config;
  config.set(kSums, rows, kLineBytes);
  config.set(kX, rows, kGroupSize);
  config.set(kWeights, kGroupBytes / kLineBytes, kLineBytes);
  return config;
}

// Rows row .. row + rows - 1, which are rounded once: pieces of as many rows as each other, the
// last one's after `rows` being whatever memory holds. Every panel stays near while it meets them.
template <WeightFormat kFormat>
void multiply_rows(const LinearTask& task, int64_t row, int64_t rows, int64_t first, int64_t end) {
  constexpr bool kIsInt4 = kFormat == WeightFormat::kInt4;
  const int64_t step = task.epilogue.kind == Epilogue::Kind::kSiluMul ? 2 : 1;
  const int64_t groups = (task.in_features + kGroupSize - 1) / kGroupSize;
  const int64_t pieces = (rows + amx::kRows - 1) / amx::kRows;
  const int64_t even = (rows + pieces - 1) / pieces;
  const int size = static_cast<int>(even < kLeastRows ? kLeastRows : even);
  const int64_t unpacked_bytes = groups * kGroupBytes;
  std::byte* x = task.integers + (kIsInt4 ? 2 * unpacked_bytes : 0);
  const int64_t x_bytes = Piece::num_bytes(groups, size);
  for (int64_t r = 0; r < rows; ++r) {
    Piece(x + r / size * x_bytes, groups, size)
        .set(static_cast<int>(r % size), size, task.x.data + (row + r) * task.x.stride,
             task.in_features, kIsInt4 ? 1.0f / kInt4Factor : 1.0f);
  }
  const auto multiply = kGroupsTable<kFormat>.run[size - kLeastRows];
  const int64_t lines = task.panel_bytes / kLineBytes;
  const bool is_few = pieces == 1;
  // Many rows ask for the next panels evenly, while they meet these.
  const int64_t lines_ahead = (lines + pieces * groups - 1) / (pieces * groups);
  const amx::Tiles tiles(config_of(size));
  for (int64_t panel = first; panel < end; panel += step) {
    if (is_few) ask_for_out(task, row, rows, panel);
    const std::byte* ahead = task.panel(panel + step);
    for (int64_t piece = 0; piece < pieces; ++piece) {
      for (int64_t p = 0; p < step; ++p, ahead += groups * lines_ahead * kLineBytes) {
        const std::byte* packed = task.panel(panel + p);
        multiply({packed, task.integers + p * unpacked_bytes, piece == 0,
                  is_few ? packed + kBytesAhead : ahead, lines_ahead},
                 Piece(x + piece * x_bytes, groups, size), groups, task.sums + p * kPanelRows,
                 step * kPanelRows);
      }
      const int64_t column = panel / step * kPanelRows, columns = task.out_columns - column;
      for (int64_t r = 0; r < size && piece * size + r < rows; ++r) {
        finish<S>(task, task.sums + r * step * kPanelRows, row + piece * size + r, column,
                  static_cast<int>(columns < kPanelRows ? columns : kPanelRows));
      }
    }
  }
}

}  // namespace

void multiply_rounded_amx_integers(const LinearTask& task, WeightFormat format, int64_t first,
                                   int64_t end) {
  if (task.num_rows < kLeastRows) return multiply_rounded_vnni(task, format, first, end);
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
