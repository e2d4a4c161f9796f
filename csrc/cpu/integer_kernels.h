// Products of int8 and int4 weights with activations rounded to int8: integer dots, exact, for each
// group of kGroupSize terms, then one chain of float fused multiply-adds over the groups.
//
// A group of a row's activations is q * scale with scale = largest / 127. The integers are the same
// on every instruction set, and so are the floats in their order. Include this after
// linear_kernels.h; Dots<S> below is the portable one, an instruction set may specialise it first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "linear_kernels.h"

namespace stagebeam::kernels {

template <typename S>
STAGEBEAM_INLINE inline float multiply_add(float a, float b, float c) {
  if constexpr (S::kNumRegisters == 0) return a * b + c;
  return __builtin_fmaf(a, b, c);
}

// Adding it rounds to a whole number, which is then in the low bits.
inline constexpr float kRoundingShift = 12582912.0f;  // 1.5 * 2^23
inline constexpr int32_t kRoundingBits = 0x4b400000;  // its own

// One group of up to kRows rows of activations as int8, and what belongs to them, side by side: a
// kernel finds all of it at fixed distances from one pointer.
//   scales: of each row; of int4 weights divided by kInt4Factor
//   sums:   scale * sum of the row's numbers, for what int4's least multiplies
//   starts: what a sum of int8 weights w + 128 begins with, kStart - 128 * sum of the numbers
template <int kRows, typename Element>
struct IntegerGroup {
  Element q[kRows][kGroupSize];
  float scales[kRows];
  float sums[kRows];
  int32_t starts[kRows];
};

// The portable integer dots. A line holds, for 16 weight rows, four int8 or eight 4-bit weights.
template <typename S>
struct Dots {
  static constexpr int kVectors = 1;
  static constexpr int kMaxRows = 2;
  // int8 weights are w + 128, and sums begin with `starts`.
  static constexpr bool kIsOffset = false;
  static constexpr int32_t kStart = 0;    // what other sums begin with
  static constexpr bool kIsWide = false;  // int8 weights meet activations that are int16
  struct Ints {
    int32_t v[kPanelRows];
  };
  static inline Ints set1(int32_t x) {
    Ints out;
    for (int32_t& value : out.v) value = x;
    return out;
  }
  template <int R>
  static inline void add_int8(const std::byte* line, const int8_t (*x)[kGroupSize], int at,
                              Ints (&sums)[R][1]) {
    int8_t w[kLineBytes];
    std::memcpy(w, line, sizeof w);
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < kLineBytes; ++i) sums[r][0].v[i / 4] += w[i] * x[r][at + i % 4];
    }
  }
  template <int R>
  static inline void add_int4(const std::byte* line, const int8_t (*x)[kGroupSize], int at,
                              Ints (&sums)[R][1]) {
    uint8_t w[kLineBytes];
    std::memcpy(w, line, sizeof w);
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < kLineBytes; ++i) {
        sums[r][0].v[i / 4] += (w[i] & 15) * x[r][at + i % 4] + (w[i] >> 4) * x[r][at + 4 + i % 4];
      }
    }
  }
  template <int R>
  static inline void finish_int4(Ints (&)[R][1]) {}
  static inline void to_floats(const Ints& sums, float* out) {
    for (int i = 0; i < kPanelRows; ++i) out[i] = static_cast<float>(sums.v[i]);
  }
  // Vector i of S::kWidth sums less kStart, times `step`, rounded once.
  static inline typename S::Float times(const Ints (&sums)[1], int i, typename S::Float step) {
    float values[kPanelRows];
    to_floats(sums[0], values);
    return S::mul(S::load(values + i * S::kWidth), step);
  }
};

// What an instruction set's dots for a format meet: a group of kMaxRows rows, or of one alone.
template <typename S, WeightFormat kFormat, bool kIsLone>
using GroupOf = IntegerGroup<
    kIsLone ? 1 : Dots<S>::kMaxRows,
    std::conditional_t<Dots<S>::kIsWide && kFormat == WeightFormat::kInt8, int16_t, int8_t>>;

// Rounds a row's groups, one after the other: kGroupSize integers to place(group), numbers after
// the last being zeros; then note(group, scale, sum of the integers). An instruction set may
// specialise this.
template <typename S>
struct Rounding {
  template <typename Place, typename Note>
  static void row(const float* x, int64_t count, float factor, Place place, Note note) {
    for (int64_t g = 0; g * kGroupSize < count; ++g) {
      const float* group = x + g * kGroupSize;
      float padded[kGroupSize] = {};
      const int64_t left = count - g * kGroupSize;
      if (left < kGroupSize) {
        std::memcpy(padded, group, sizeof(float) * static_cast<size_t>(left));
        group = padded;
      }
      int32_t most_bits = 0;  // magnitudes order as their bits do, infinities and NaN last
      for (int i = 0; i < kGroupSize; ++i) {
        int32_t bits;
        std::memcpy(&bits, group + i, 4);
        bits &= 0x7fffffff;
        most_bits = bits > most_bits ? bits : most_bits;
      }
      const float most = bits_to_float(static_cast<uint32_t>(most_bits));
      const bool is_finite = most_bits < 0x7f800000;
      // Below 2^-119 the inverse would overflow: such a group is zeros.
      const float inverse = is_finite && most > 0x1p-119f ? 127.0f / most : 0.0f;
      int8_t* q = place(g);
      int32_t sum = 0;
      for (int i = 0; i < kGroupSize; ++i) {
        const float shifted = multiply_add<S>(group[i], inverse, kRoundingShift);
        int32_t bits;
        std::memcpy(&bits, &shifted, 4);
        const int32_t value = is_finite ? bits - kRoundingBits : 0;
        q[i] = static_cast<int8_t>(value);
        sum += value;
      }
      // A group with infinities or NaN makes the row's sums NaN.
      note(g, is_finite ? most / 127.0f * factor : bits_to_float(0x7fc00000), sum);
    }
  }
};

// Rounds `count` activations to row `row` of groups. As int16 every four a b c d stand in the order
// a c b d.
template <typename S, WeightFormat kFormat, bool kIsLone>
void quantize_row(const float* x, int64_t count, std::byte* memory, int64_t row) {
  auto* groups = reinterpret_cast<GroupOf<S, kFormat, kIsLone>*>(memory);
  const float factor = kFormat == WeightFormat::kInt4 ? 1.0f / kInt4Factor : 1.0f;
  constexpr bool kIsInt16 = sizeof groups[0].q[0][0] == 2;
  int8_t values[kGroupSize];
  auto place = [&](int64_t g) {
    if constexpr (kIsInt16) {
      (void)g;
      return values;
    } else {
      return groups[g].q[row];
    }
  };
  Rounding<S>::row(x, count, factor, place, [&](int64_t g, float scale, int32_t sum) {
    auto* q = groups[g].q[row];
    for (int i = 0; i < kGroupSize && kIsInt16; i += 4) {
      q[i] = values[i];
      q[i + 1] = values[i + 2];
      q[i + 2] = values[i + 1];
      q[i + 3] = values[i + 3];
    }
    groups[g].scales[row] = scale;
    groups[g].sums[row] = scale * static_cast<float>(sum);
    groups[g].starts[row] = Dots<S>::kStart - 128 * sum;
  });
}

// How far ahead of their use weights are asked for from the second cache into the first, whose few
// requests may not wait for memory.
inline constexpr int64_t kIntegerBytesNear = 1024;

// One panel times the groups' first R rows, over all of K, to out [R, kPanelRows].
template <typename S, WeightFormat kFormat, int R>
void multiply_integers(const std::byte* panel, const std::byte* memory, int64_t num_groups,
                       float* out, int64_t out_stride) {
  const auto* groups = reinterpret_cast<const GroupOf<S, kFormat, R == 1>*>(memory);
  using D = Dots<S>;
  constexpr PanelLayout kLayout = panel_layout(kFormat);
  constexpr bool kIsInt4 = kFormat == WeightFormat::kInt4;
  constexpr int kGroups = kLayout.block_k / kGroupSize;
  constexpr int kLines = kGroupSize / kLayout.word_k;
  constexpr int kGroupLines = (kLayout.block_bytes() / kGroups + kLineBytes - 1) / kLineBytes;
  constexpr int kV = kVectors<S>;
  typename S::Float sums[R][kV];
  STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
    STAGEBEAM_UNROLL for (int v = 0; v < kV; ++v) sums[r][v] = S::zero();
  }
  const std::byte* block = panel;
  for (int64_t g = 0; g < num_groups; ++g) {
    const auto& x = groups[g];
    const int in_block = static_cast<int>(g % kGroups);
    const std::byte* line = block + kLayout.scale_bytes + in_block * kLines * kLineBytes;
    typename D::Ints dots[R][D::kVectors];
    STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
      const auto start = D::set1(D::kIsOffset && !kIsInt4 ? x.starts[r] : D::kStart);
      STAGEBEAM_UNROLL for (int v = 0; v < D::kVectors; ++v) dots[r][v] = start;
    }
    STAGEBEAM_UNROLL for (int i = 0; i < kLines; ++i) {
      if constexpr (kIsInt4) {
        D::template add_int4<R>(line + i * kLineBytes, x.q, i * kLayout.word_k, dots);
      } else {
        D::template add_int8<R>(line + i * kLineBytes, x.q, i * kLayout.word_k, dots);
      }
    }
    if constexpr (kIsInt4) D::template finish_int4<R>(dots);
    const auto* bits = reinterpret_cast<const uint16_t*>(block);
    STAGEBEAM_UNROLL for (int v = 0; v < kV; ++v) {
      typename S::Float step, least = S::zero();
      if constexpr (kIsInt4) {
        step = S::load_fp16(bits + v * S::kWidth);
        least = S::load_fp16(bits + kPanelRows + v * S::kWidth);
      } else {
        step = S::load_bf16(bits + in_block * kPanelRows + v * S::kWidth);
      }
      STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
        sums[r][v] = S::fma(D::times(dots[r], v, step), S::set1(x.scales[r]), sums[r][v]);
        if constexpr (kIsInt4) {
          sums[r][v] = S::fma(least, S::set1(x.sums[r]), sums[r][v]);
        }
      }
    }
    if constexpr (S::kNumRegisters > 0) {
      STAGEBEAM_UNROLL for (int i = 0; i < kGroupLines; ++i) {
        __builtin_prefetch(line + kIntegerBytesNear + i * kLineBytes);
      }
      ask_for_next_window<kGroupLines>(line);
    }
    if (in_block == kGroups - 1) block += kLayout.block_bytes();
  }
  STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
    STAGEBEAM_UNROLL for (int v = 0; v < kV; ++v) {
      S::store(out + r * out_stride + v * S::kWidth, sums[r][v]);
    }
  }
}

using IntegerFunction = void (*)(const std::byte*, const std::byte*, int64_t, float*, int64_t);
template <typename S, WeightFormat kFormat>
struct IntegerTable {
  IntegerFunction run[Dots<S>::kMaxRows];  // [rows - 1]

  template <int... R>
  static constexpr IntegerTable make(std::integer_sequence<int, R...>) {
    return {{&multiply_integers<S, kFormat, R + 1>...}};
  }
};
template <typename S, WeightFormat kFormat>
inline constexpr IntegerTable<S, kFormat> kIntegerTable =
    IntegerTable<S, kFormat>::make(std::make_integer_sequence<int, Dots<S>::kMaxRows>{});

// Panels first .. end - 1 for all rows. Blocks of kIntegerRows rows are rounded once, and every
// panel stays in the nearest cache while it meets them.
template <typename S, WeightFormat kFormat>
void multiply_rounded(const LinearTask& task, int64_t first, int64_t end) {
  const bool is_gate_up = task.epilogue.kind == Epilogue::Kind::kSiluMul;
  const int64_t step = is_gate_up ? 2 : 1;
  const int64_t groups = (task.in_features + kGroupSize - 1) / kGroupSize;
  constexpr int64_t kMost = Dots<S>::kMaxRows;
  const int64_t piece_bytes = groups * int64_t{sizeof(GroupOf<S, kFormat, false>)};
  for (int64_t row = 0; row < task.num_rows; row += kIntegerRows) {
    const int64_t left = task.num_rows - row, rows = left < kIntegerRows ? left : kIntegerRows;
    const int64_t pieces = (rows + kMost - 1) / kMost;
    for (int64_t piece = 0, at = 0; piece < pieces; ++piece) {
      const int64_t count = (rows - at) / (pieces - piece);
      const auto quantize =
          count == 1 ? quantize_row<S, kFormat, true> : quantize_row<S, kFormat, false>;
      for (int64_t r = 0; r < count; ++r, ++at) {
        quantize(task.x.data + (row + at) * task.x.stride, task.in_features,
                 task.integers + piece * piece_bytes, r);
      }
    }
    if (rows <= kMost) ask_for_out(task, row, rows, first);
    for (int64_t panel = first; panel < end; panel += step) {
      if (rows <= kMost && panel + step < end) ask_for_out(task, row, rows, panel + step);
      for (int64_t piece = 0, at = 0; piece < pieces; ++piece) {
        const int64_t count = (rows - at) / (pieces - piece);
        for (int64_t p = 0; p < step; ++p) {
          kIntegerTable<S, kFormat>.run[count - 1](task.panel(panel + p),
                                                   task.integers + piece * piece_bytes, groups,
                                                   task.sums + p * kPanelRows, step * kPanelRows);
        }
        finish<S>(task, task.sums, step * kPanelRows, row + at, count, panel / step * kPanelRows);
        at += count;
      }
    }
  }
}

template <typename S>
void multiply_rounded_any(const LinearTask& task, WeightFormat format, int64_t first, int64_t end) {
  if (format == WeightFormat::kInt4) {
    multiply_rounded<S, WeightFormat::kInt4>(task, first, end);
  } else {
    multiply_rounded<S, WeightFormat::kInt8>(task, first, end);
  }
}

}  // namespace stagebeam::kernels
